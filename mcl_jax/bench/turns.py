"""Our step and torch's on a GPU, one after the other, each alone on the card.

    python -m mcl_jax.bench.turns ours|torch FOLDER

Ours goes first and leaves in the folder what torch starts from.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcl_jax.errors import UserError

SIDES = ("ours", "torch")


def compare(
    config: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    warm_up: int,
    steps: int,
    torch_device: str = "cuda",
) -> dict[str, Any]:
    """Runs both sides; see `versus.compare` for config, names and result.

    Args:
      warm_up: torch's steps that are not timed.
      steps: timed steps of each.
      torch_device: see `torch_side.step_function`.

    Raises:
      UserError: if a side fails, with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = {"config": dict(config), "names": dict(names), "warm_up": warm_up, "steps": steps}
        task["torch_device"] = torch_device
        (Path(folder) / "task.json").write_text(json.dumps(task))
        ours, theirs = (_run(side, Path(folder)) for side in SIDES)
    return join(ours, theirs)


def join(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides' results as one; the ratio is of images/s, as torch's batch may be smaller.

    Raises:
      UserError: if a loss of torch's was not finite.
    """
    if not theirs["finite"]:
        raise UserError("a loss of the side 'torch' is not finite")
    return {
        "ratio": ours["images_per_s"] / theirs["images_per_s"],
        "seconds": ours["seconds_per_step"],
        "torch_seconds": theirs["seconds"],
        "images_per_s": ours["images_per_s"],
        "torch_images_per_s": theirs["images_per_s"],
        "batch_size": ours["batch_size"],
        "torch_batch_size": theirs["batch_size"],
        "mfu": ours["mfu"],
        # the same needed FLOPs an image: what torch computes beyond them does not count
        "torch_mfu": ours["mfu"] and ours["mfu"] * theirs["images_per_s"] / ours["images_per_s"],
        "peak_bytes": ours["memory_in_use_bytes"],
        "torch_peak_bytes": theirs["peak_bytes"],
        "torch_reserved_bytes": theirs["reserved_bytes"],
        "first_loss": ours["first_loss"],
        "torch_first_loss": theirs["first_loss"],
        "device": ours["device"],
        "torch_device": theirs["device"],
        "torch": theirs["torch"],
    }


def _run(side: str, folder: Path) -> dict[str, Any]:
    environment = dict(os.environ)
    environment.pop(
        "XLA_PYTHON_CLIENT_PREALLOCATE", None
    )  # the parent's; a side has the card alone
    command = [sys.executable, "-m", "mcl_jax.bench.turns", side, str(folder)]
    process = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        raise UserError(f"the side {side!r} failed: {process.stderr[-2000:]}")
    return json.loads((folder / f"{side}.json").read_text())


def ours(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes torch's task, then measures our step from the same weights and montages."""
    from mcl_jax import program, sharding
    from mcl_jax.bench import step, versus

    config = task["config"]
    run = program.build(config, sharding.mesh_for(config), images=config["data"]["batch_size"])
    state, batch = program.new_state(run), program.random_batch(run)
    versus.torch_task(run, state, batch=batch, names=task["names"]).save(folder / "torch.npz")
    del state  # `measure` makes the same once more
    return step.measure(config, task["steps"])


def theirs(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Measures torch's step from what ours left in the folder."""
    from mcl_jax.bench import torch_side

    torch_task = torch_side.Task.load(folder / "torch.npz")
    return torch_side.time_alone(
        torch_task, task["torch_device"], warm_up=task["warm_up"], steps=task["steps"]
    )


def main(side: str, folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text())
    result = {"ours": ours, "torch": theirs}[side](task, folder)
    (folder / f"{side}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
