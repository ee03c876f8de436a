"""Losses of a few steps on one device in float32 or float64, to compare platforms.

    python -m mcl_jax.bench.parity CONFIG.json STEPS OUT.json

Matrix products are at the highest precision, batches are those of the training run. float32 also
tells how exact a platform's convolutions are. float64 ($JAX_ENABLE_X64 is 1) tells whether both
compute the same: activations are float64, state and pixels stay float32.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A network that a CPU steps through in seconds and whose float32 gradients are well-conditioned
# (those of a ResNet-50 at 64 px are not: 2-3 % between float32 and float64), without a warm-up, so
# that every step changes the next one's loss.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 32, "image_size": 64, "canvas_size": 96},
    "model": {"backbone": "resnet18"},
    "numerics": {"bn_devices": 0},
    "optimizer": {"micro_batches": 1, "warmup_epochs": 0.0},
}
# Relative, of every loss. float64: what rounding the state and the pixels to float32 may do.
TOLERANCES = {"float32": 1e-4, "float64": 1e-6}


def small(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration with the values of SMALL, computing in one of TOLERANCES."""
    values = {**SMALL, "numerics": {**SMALL["numerics"], "compute_dtype": dtype}}
    return {
        name: {**section, **values[name]} if name in values else section
        for name, section in config.items()
    }


def steps(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """{'losses', 'grad_norms', 'dtype', 'device'} of the first steps on the first device."""
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
    dtype, device = config["numerics"]["compute_dtype"], jax.devices()[0].device_kind
    return {"losses": losses, "grad_norms": norms, "dtype": dtype, "device": device}


def compare(ours: Mapping[str, Any], cpu: Mapping[str, Any]) -> dict[str, Any]:
    """The largest relative differences between two results of `steps`, and both results."""
    tolerance = TOLERANCES[cpu["dtype"]]
    return {
        "largest_loss_difference": _largest(ours["losses"], cpu["losses"]),
        "largest_grad_norm_difference": _largest(ours["grad_norms"], cpu["grad_norms"]),
        "equal": _largest(ours["losses"], cpu["losses"]) <= tolerance,
        "tolerance": tolerance,
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
