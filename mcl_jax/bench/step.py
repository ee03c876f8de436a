"""The train step's speed: seconds, images/s, share of the chip's peak, memory; also without running.

*Needed FLOPs* are those of the networks, the loss and the optimizer as traced, before any compiler:
in the `assigned` pyramid, without recomputation, and without crop and blur, which are matrix
products here but need not be. A share of the peak counts these alone.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax import program, sharding
from mcl_jax.errors import UserError
from mcl_jax.planning import compiled, topology
from mcl_jax.report import profile

# Steps that are not timed: the first loads and autotunes kernels.
WARM_UP = 2
# Of the memory there is, the share that a batch may be planned to fill: fragments cost the rest.
FILL = 0.95
# A larger batch is tried in multiples of so many images; levels of any montage divide it.
GRANULE = 64
# Batches tried, each an eighth smaller than the one before, until one fits.
TRIES = 3


def compare_pyramids(config: Any) -> dict[str, Any]:
    """`compiled.figures` of both pyramid modes and the ratios full / assigned."""
    result: dict[str, Any] = {}
    for pyramid in ("assigned", "full"):
        variant = _changed(config, ("loss", "pyramid", pyramid))
        print(f"compiling pyramid={pyramid} ...", file=sys.stderr, flush=True)
        result[pyramid] = compiled.figures(program.lower_step(_built(variant)).compile())
    for name in ("flops", "bytes", "peak_bytes"):
        result[f"{name}_ratio"] = result["full"][name] / result["assigned"][name]
    return result


def measure(config: Any, steps: int, traced_steps: int = 0) -> dict[str, Any]:
    """Runs the step on batches of noise.

    Args:
      config: as configs/base.py.
      steps: timed, after WARM_UP.
      traced_steps: after those, under the profiler; 0: none.

    Returns:
      `compiled.figures`, 'seconds_per_step' (median, each step waited for), 'seconds_per_step_ahead'
      (mean of as many steps sent off without waiting, as the training loop does), 'images_per_s' (by
      the first), 'needed_flops' of a device and 'mfu' (their share of the bf16 peak; None without a
      published peak), 'memory_in_use_bytes' (the device's peak; None on a CPU), 'compile_s', and
      with traced_steps 'profile', see `profile.longest`.
    """
    step_flops = needed_flops(config)  # first: should it fail, no measurement is lost
    run = _built(config)
    started = time.perf_counter()
    step = program.lower_step(run).compile()
    compile_s = time.perf_counter() - started
    once = stepper(run, step, state=program.new_state(run), batch=program.random_batch(run))
    seconds, first_loss = timed(once, WARM_UP, steps)
    result = compiled.figures(step) | about(config)
    result |= {
        "compile_s": compile_s,
        "steps": steps,
        "first_loss": first_loss,
        "seconds_per_step": float(np.median(seconds)),
        "slowest_step_s": max(seconds),
        "seconds_per_step_ahead": _ahead(once, steps),
        "memory_in_use_bytes": memory("peak_bytes_in_use"),
    }
    result |= rates(
        config, result["seconds_per_step"], flops=result["flops"], step_flops=step_flops
    )
    if traced_steps:
        result["profile"] = profile.longest(
            lambda: jax.block_until_ready(once()), traced_steps, program_text=step.as_text()
        )
    return result


def rates(
    config: Mapping[str, Any], seconds: float, flops: float, step_flops: float | None
) -> dict[str, Any]:
    """What follows from a step's seconds: images/s, FLOP/s, share of the peak.

    Args:
      flops: of the compiled step on a device.
      step_flops: what a device needs, see `needed_flops`.
    """
    chip = topology.chip_named(jax.devices()[0])
    counted = config["optimizer"]["micro_batches"] == 1  # XLA counts a loop's inside once
    return {
        "images_per_s": config["data"]["batch_size"] / seconds,
        "flops_per_s_per_device": flops / seconds if counted else None,
        "needed_flops": step_flops,
        "peak_flops_per_s": chip.flops if chip else None,
        "mfu": step_flops / seconds / chip.flops if chip and step_flops else None,
    }


def needed_flops(config: Mapping[str, Any], mesh: Mesh | None = None) -> float | None:
    """A device's needed FLOPs of one step; None with micro-batches, whose loop is counted once.

    Traced for the shape of the mesh alone and counted by JAX's CPU backend, for those of GPUs and TPUs
    count nothing that is not compiled; None also where $JAX_PLATFORMS leaves that backend out.

    Args:
      mesh: default: the one that a run of this configuration trains on.
    """
    if config["optimizer"]["micro_batches"] > 1 or not _has_cpu_backend():
        return None
    mesh = sharding.mesh_for(config) if mesh is None else mesh
    shape = jax.sharding.AbstractMesh(tuple(mesh.shape.values()), mesh.axis_names)
    assigned = _changed(config, ("loss", "pyramid", "assigned"), ("numerics", "remat", False))
    run = program.build(assigned, shape, images=config["data"]["batch_size"])
    b = run.objective.images_per_device
    batch = {
        name: jax.ShapeDtypeStruct((b, *field.shape[1:]), field.dtype)
        for name, field in program.abstract_batch(run).items()
    }
    inputs = jax.jit(run.objective.inputs).trace(jax.ShapeDtypeStruct((), np.uint32), 0, batch, 0)
    with jax.default_device("cpu"):
        of_all, of_inputs = (
            traced.lower(lowering_platforms=("cpu",)).cost_analysis()["flops"]
            for traced in (program.trace_step(run), inputs)
        )
    return of_all - of_inputs


def _has_cpu_backend() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False


def largest(config: Any, steps: int, room_bytes: float) -> dict[str, Any]:
    """`measure` at the largest batch that fits.

    Args:
      config: at data.batch_size it tells how much memory an image needs beside the state.
      steps: timed.
      room_bytes: of a device; 0: all that the device has.

    Raises:
      UserError: where the device does not say how much it has, or no batch fits.
    """
    room = room_bytes or memory("bytes_limit")
    if not room:
        kind = jax.devices()[0].device_kind
        raise UserError(f"{kind} does not say how much memory it has; give --room_gib")
    run = _built(config)
    state_bytes = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract_state(run))
    )
    peak_bytes = compiled.figures(program.lower_step(run).compile())["peak_bytes"]
    per_image = (peak_bytes - state_bytes) / run.objective.images_per_device
    images = batch_that_fits(room, state_bytes, per_image)
    for _ in range(TRIES):
        if images <= 0:
            break
        batch = images * run.mesh.size
        try:
            result = measure(_changed(config, ("data", "batch_size", batch)), steps)
            return result | {"room_bytes": room, "bytes_per_image": per_image}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{batch} images do not fit after all", file=sys.stderr, flush=True)
        images -= max(images // 8 // GRANULE, 1) * GRANULE
    raise UserError(f"{room / topology.GIB:.2f} GiB is too little for {GRANULE} images a device")


def batch_that_fits(room: float, state_bytes: float, bytes_per_image: float) -> int:
    """The largest multiple of GRANULE images beside the state in FILL of the room; 0 for none."""
    images = (FILL * room - state_bytes) / bytes_per_image
    return max(int(images), 0) // GRANULE * GRANULE


def stepper(run: program.Program, step: Any, state: Any, batch: Any) -> Callable[[], Any]:
    """A function that does one compiled step after the other and returns the metrics."""
    placed, seed = sharding.put_batch(batch, run.mesh), program.seed_argument(run)

    def once() -> Any:
        nonlocal state
        state, metrics = step(state, placed, seed)
        return metrics

    return once


def timed(once: Callable[[], Any], warm_up: int, steps: int) -> tuple[list[float], float]:
    """(seconds of every step after the warm-up, loss of the very first)."""
    seconds, losses = [], []
    for _ in range(warm_up + steps):
        start = time.perf_counter()
        metrics = jax.block_until_ready(once())
        seconds.append(time.perf_counter() - start)
        losses.append(float(metrics["loss"]))
    return seconds[warm_up:], losses[0]


def _ahead(once: Callable[[], Any], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        metrics = once()
    jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / steps


def about(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a figure is of: device, versions, sizes."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "batch_size": config["data"]["batch_size"],
        "image_size": config["data"]["image_size"],
        "backbone": config["model"]["backbone"],
        "compute_dtype": config["numerics"]["compute_dtype"],
    }


def memory(name: str) -> int | None:
    """An entry of the first device's memory statistics; None on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get(name)


def _built(config: Mapping[str, Any]) -> program.Program:
    mesh = sharding.mesh_for(config)
    return program.build(config, mesh, images=config["data"]["batch_size"])


def _changed(config: Any, *changes: tuple[str, str, Any]) -> dict[str, Any]:
    """The configuration as plain dicts with other values, given as (section, key, value)."""
    plain = program.plain_config(config)
    for section, key, value in changes:
        plain[section][key] = value
    return plain
