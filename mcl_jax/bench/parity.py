"""Losses of a few float32 steps on one device, to compare platforms.

    python -m mcl_jax.bench.parity CONFIG.json STEPS OUT.json

Matrix products are at the highest precision, batches are those of the training run.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A network that a CPU steps through in seconds and whose float32 gradients are well-conditioned
# (those of a ResNet-50 at 64 px are not: 2-3 % between float32 and float64), without a warm-up, so
# that every step changes the next one's loss.
SMALL = {
    "data": {"batch_size": 32, "image_size": 64, "canvas_size": 96},
    "model": {"backbone": "resnet18"},
    "numerics": {"compute_dtype": "float32", "bn_devices": 0},
    "optimizer": {"micro_batches": 1, "warmup_epochs": 0.0},
}
TOLERANCE = 1e-4  # relative, of every loss


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the values of SMALL."""
    return {
        name: {**section, **SMALL[name]} if name in SMALL else section
        for name, section in config.items()
    }


def steps(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """{'losses', 'grad_norms', 'device'} of the first steps on the first device."""
    import jax

    from mcl_jax import loop, program, sharding
    from mcl_jax.data.sources import open_source

    jax.config.update("jax_default_matmul_precision", "highest")
    mesh, data = sharding.make_mesh(jax.devices()[:1]), config["data"]
    source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
    run = program.build(config, mesh, images=len(source))
    state, seed = program.new_state(run), program.seed_argument(run)
    step = program.lower_step(run).compile()
    losses, norms = [], []
    with loop.open_batches(run, source, 0) as batches:
        for _ in range(count):
            batch = next(batches)
            inputs = {name: batch[name] for name in run.objective.batch_fields}
            state, metrics = step(state, sharding.put_batch(inputs, mesh), seed)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    return {"losses": losses, "grad_norms": norms, "device": jax.devices()[0].device_kind}


def compare(ours: Mapping[str, Any], cpu: Mapping[str, Any]) -> dict[str, Any]:
    """The largest relative differences between two results of `steps`, and both results."""
    return {
        "largest_loss_difference": _largest(ours["losses"], cpu["losses"]),
        "largest_grad_norm_difference": _largest(ours["grad_norms"], cpu["grad_norms"]),
        "equal": _largest(ours["losses"], cpu["losses"]) <= TOLERANCE,
        "tolerance": TOLERANCE,
        "accelerator": dict(ours),
        "cpu": dict(cpu),
    }


def _largest(values: list[float], references: list[float]) -> float:
    pairs = zip(values, references, strict=True)
    return max(abs(value - reference) / abs(reference) for value, reference in pairs)


def main(config: Path, count: int, out: Path) -> None:
    out.write_text(json.dumps(steps(json.loads(config.read_text()), count)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
