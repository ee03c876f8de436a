"""Every orbax call. A run's checkpoints live in WORKDIR/checkpoints/STEP: `state` and `meta`.

`meta` is JSON: the plain config, the step, and what produced the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mcl_jax.errors import UserError
from mcl_jax.state import TrainState

FOLDER = "checkpoints"
ITEMS = ("state", "meta")


def _write_once() -> None:
    """Has process 0 write the replicated state alone.

    By default orbax lets every device write a slice of every array: thousands of small programs to
    compile and run while the next step waits (R50 on 8 CPU devices: 29 s for the first save and 3 s
    for later ones, against 2.4 s and 0.3 s).
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that its own handler is replaced
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    logging.set_verbosity(verbosity)


_write_once()


class Checkpointer:
    """Asynchronous, atomic, the newest `keep` kept. Use as a context manager.

    Orbax writes to a temporary name and renames when complete, so a killed save never looks like a
    checkpoint; what it left behind is removed at the next start.
    """

    def __init__(self, workdir: str | Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        folder = Path(workdir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=ITEMS)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # with a process lost, closing would wait for it at a barrier; a save under way has no name
        if not (kind and issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1):
            self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint in the shapes and shardings of `abstract`.

        Raises:
          UserError: if it was written by another architecture.
        """
        step = self.latest_step()
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"the checkpoint of step {step} does not fit this config ({reason}); "
                "use its own config or a new --workdir"
            ) from error
        return restored.state, restored.meta

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts an asynchronous save; a failure of the one before is raised here."""
        step = int(state.step)
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta | {"step": step})
            ),
        )

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        self._manager.wait_until_finished()


def find(path: str | Path) -> tuple[Path, int]:
    """(checkpoints folder, step) of a workdir, its `checkpoints` folder or one step's folder.

    Raises:
      UserError: if there is no finished checkpoint, saying what was looked for.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise UserError(f"{path} does not exist; give a --workdir of scripts/pretrain.py")
    if path.name.isdigit() and (path / "state").is_dir():
        return path.parent, int(path.name)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = []
    if folder.is_dir():
        entries = (entry for entry in folder.iterdir() if entry.name.isdigit())
        steps = [int(entry.name) for entry in entries if (entry / "state").is_dir()]
    if not steps:
        raise UserError(
            f"{path} is not a checkpoint: no {FOLDER}/STEP/state in it; "
            "give a --workdir of scripts/pretrain.py or one of its checkpoints"
        )
    return folder, max(steps)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint as numpy, without needing its config or devices.

    Args:
      path: a workdir (newest step), its `checkpoints` folder, or one step's folder.

    Returns:
      (state, meta): nested dicts of numpy arrays under the field names of TrainState, and
      {'config': ..., 'step': ...}.

    Raises:
      UserError: if it is not a checkpoint or cannot be read.
    """
    folder, step = find(path)
    try:
        reader = ocp.PyTreeCheckpointHandler()
        tree = reader.metadata(folder / str(step) / "state").tree
        # numpy arrays need no devices, so a pod's checkpoint opens on a laptop
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        state = reader.restore(folder / str(step) / "state", args=arguments)
        meta = json.loads((folder / str(step) / "meta" / "metadata").read_text())
    except Exception as error:  # orbax raises many kinds for a damaged checkpoint
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {folder / str(step)} cannot be read: {reason}") from error
    return state, meta


def write(workdir: str | Path, state: TrainState, meta: dict[str, Any]) -> Path:
    """Writes one checkpoint into a workdir that `scripts/pretrain.py` can resume.

    Raises:
      UserError: if the workdir already holds checkpoints.
    """
    folder = Path(workdir).absolute() / FOLDER
    if folder.exists() and any(entry.name.isdigit() for entry in folder.iterdir()):
        raise UserError(f"{workdir} already holds checkpoints; choose a new folder")
    with Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(state, meta)
        checkpointer.wait()
    return folder / str(int(state.step))
