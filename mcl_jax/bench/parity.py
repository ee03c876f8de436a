"""Losses of a few steps on one device in float32 and in float64, to compare platforms.

    python -m mcl_jax.bench.parity CONFIG.json STEPS OUT.json

Matrix products are at the highest precision, batches are those of the training run. In float64
($JAX_ENABLE_X64 is 1) state and views are float32's, widened: so it tells how much of a difference in
float32 is rounding, and whether two platforms compute the same at all.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}  # relative, of every loss
PLACES = ("accelerator", "cpu")
LEGS = tuple(f"{place} {dtype}" for place in PLACES for dtype in TOLERANCES)


def small(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration with the values of SMALL, computing in one of TOLERANCES."""
    smaller = {
        name: {**section, **SMALL[name]} if name in SMALL else section
        for name, section in config.items()
    }
    return _in(smaller, dtype)


def _in(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {**config, "numerics": {**config["numerics"], "compute_dtype": dtype}}


def steps(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """{'losses', 'grad_norms', 'dtype', 'device'} of the first steps on the first device."""
    import jax

    from mcl_jax import loop, program, sharding
    from mcl_jax.data.sources import open_source

    jax.config.update("jax_default_matmul_precision", "highest")
    data, dtype = config["data"], config["numerics"]["compute_dtype"]
    source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
    mesh = sharding.make_mesh(jax.devices()[:1])
    with jax.enable_x64(False):
        run = program.build(_in(config, "float32"), mesh, images=len(source))
        state, seed = program.new_state(run), program.seed_argument(run)
    if dtype == "float64":
        state = widened(state)
        step = _wide_step(program.build(config, mesh, images=len(source)), narrow=run)
    else:
        step = program.lower_step(run).compile()
    losses, norms = [], []
    with loop.open_batches(run, source, 0) as batches:
        for _ in range(count):
            batch = next(batches)
            inputs = {name: batch[name] for name in run.objective.batch_fields}
            state, metrics = step(state, sharding.put_batch(inputs, mesh), seed)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    device = jax.devices()[0].device_kind
    return {"losses": losses, "grad_norms": norms, "dtype": dtype, "device": device}


def _wide_step(run: Any, narrow: Any) -> Any:
    """(state, batch, seed) -> (state, metrics) of `run` on the views of `narrow`, widened."""
    import jax

    from mcl_jax import sharding
    from mcl_jax.train_step import train_step

    class OnViews(type(run.objective)):  # type: ignore[misc]
        def inputs(self, seed, step, batch, device):
            return batch  # views already

    views = jax.jit(narrow.objective.inputs)
    on_views = replace(run, objective=OnViews(**vars(run.objective)))
    wide = jax.jit(sharding.per_device(partial(train_step, run=on_views), run.mesh))

    def step(state, batch, seed):
        with jax.enable_x64(False):
            inputs = views(seed, jax.device_get(state.step), batch, 0)
        return wide(state, widened(inputs), seed)

    return step


def widened(tree: Any) -> Any:
    """Its float32 arrays in float64, in numpy; the others as they are."""
    import jax
    import numpy as np

    def wide(x):
        return np.asarray(x, np.float64) if x.dtype == np.float32 else x

    return jax.tree.map(wide, jax.device_get(tree))


def compare(legs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Two platforms, each in two types.

    Args:
      legs: LEG -> result of `steps`, for all of LEGS.

    Returns:
      'largest_loss_difference', 'largest_grad_norm_difference' (relative, between the platforms in
      float32), 'equal' (whether the first is within 'tolerance'); the same in float64 as 'float64';
      'errors' of each platform's float32 losses, step by step, relative to the CPU's in float64;
      'legs'.
    """
    between = {dtype: _between(legs, dtype) for dtype in TOLERANCES}
    exact = legs["cpu float64"]["losses"]
    errors = {place: _differences(legs[f"{place} float32"]["losses"], exact) for place in PLACES}
    return between["float32"] | {
        "float64": between["float64"],
        "errors": errors,
        "legs": dict(legs),
    }


def _between(legs: Mapping[str, Mapping[str, Any]], dtype: str) -> dict[str, Any]:
    ours, cpu = (legs[f"{place} {dtype}"] for place in PLACES)
    of_losses, of_norms = (max(_differences(ours[n], cpu[n])) for n in ("losses", "grad_norms"))
    return {
        "largest_loss_difference": of_losses,
        "largest_grad_norm_difference": of_norms,
        "equal": of_losses <= TOLERANCES[dtype],
        "tolerance": TOLERANCES[dtype],
    }


def _differences(values: list[float], references: list[float]) -> list[float]:
    pairs = zip(values, references, strict=True)
    return [abs(value - reference) / abs(reference) for value, reference in pairs]


def main(config: Path, count: int, out: Path) -> None:
    out.write_text(json.dumps(steps(json.loads(config.read_text()), count)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
