"""What a run will need on a pod, from the compiled step and published figures of the chips."""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mcl_jax import program, sharding, whole_file
from mcl_jax.bench import loader
from mcl_jax.errors import UserError
from mcl_jax.planning import compiled, operations, topology
from mcl_jax.planning.topology import GIB, Chip, Topology
from mcl_jax.program import Program
from mcl_jax.settings import teaching

# XLA's lowest compile effort, as options of jax.stages.Lowered.compile. Figures are comparable only
# at one effort: at the default, the TPU compiler takes 2.6 times as long and counts 1.6 times the
# bytes of the same program (docs/tpu.md). jax 0.11 has levels instead of the number. O0 and -1
# are nearly the same: libtpu 0.0.42 takes both, with equal FLOPs and collectives, and bytes and peak
# memory 3e-6 and 7e-4 apart (a ResNet-18 step on v5e:4x4).
LOWEST_EFFORT: Mapping[str, Any] = (
    {"optimization_level": "O0"}
    if jax.__version_info__ >= (0, 11)
    else {"exec_time_optimization_effort": -1.0}
)


def make(
    config: Mapping[str, Any],
    where: Topology,
    images: int,
    cache: Path | None = None,
    options: Mapping[str, Any] = LOWEST_EFFORT,
    longest: int = 0,
) -> dict[str, Any]:
    """Compiles the real train step for a topology and says what a run needs.

    Args:
      config: as configs/base.py.
      where: pod, or local devices.
      images: in the training split; sets the length of an epoch.
      cache: folder of earlier figures, by program and compiler; None: compile anew.
      options: of the compiler, as `jax.stages.Lowered.compile` takes them.
      longest: with more than 0, also 'account', see `operations.account`; always compiled anew.

    Returns:
      {name: value} in the order of `describe`. Figures are of one chip and one step unless the name
      says otherwise; what has no published peak (a CPU) has no time either.

    Raises:
      UserError: if the batch does not divide or the step does not fit, saying what would.

    Example:
      plan = make(base.get_config().to_dict(), topology.parse("v5e:16x16"), images=1_281_167)
      print(describe(plan))
    """
    devices = topology.mesh_devices(where)
    chip, cores = topology.chip_of(where, devices), topology.cores_per_chip(devices)
    numerics = dict(config["numerics"])
    if numerics["compute_dtype"] == "auto":  # of the chips planned for, not of this machine
        numerics["compute_dtype"] = "float32" if where.platform == "cpu" else "bfloat16"
    config = {**config, "numerics": numerics}
    mesh = sharding.mesh_for(config, devices)
    teaching.check_run(config, mesh.size, images)
    run = program.build(config, mesh, images)
    figures = _figures(
        program.lower_step(run),
        where,
        devices=devices,
        cache=cache,
        options=options,
        longest=longest,
    )
    if chip is not None and figures["peak_bytes"] * cores > chip.memory:
        raise UserError(_too_big(run, figures, where=where, chip=chip, cores=cores))
    result = _sizes(run, figures, where=where, devices=devices, chip=chip) | _times(
        run, figures, devices=devices, chip=chip
    )
    return result | ({"account": figures["account"]} if longest else {})


def _figures(
    lowered: jax.stages.Lowered,
    where: Topology,
    devices: list,
    cache: Path | None,
    options: Mapping[str, Any],
    longest: int,
) -> dict[str, Any]:
    """`compiled.figures` of one device's program; from the cache if it was compiled before."""
    path = None
    if cache is not None:
        program_text = lowered.as_text()
        made_by = f"{where} {dict(options)} {jax.__version__} {devices[0].client.platform_version}"
        name = hashlib.sha256(f"{made_by}\n{program_text}".encode()).hexdigest()[:24]
        path = Path(os.path.expanduser(cache)) / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):  # not there, or damaged: compiled again
            if not longest:
                return json.loads(path.read_text())
    started = time.monotonic()
    with _ticking(f"compiling for {where.name}"):
        try:
            step = lowered.compile(compiler_options=dict(options))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"peak_bytes": _bytes_asked_for(str(error))}
    hosts = [device.process_index for device in devices]
    figures = compiled.figures(step, hosts) | {"compile_s": round(time.monotonic() - started, 1)}
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole_file.write(path, json.dumps(figures, indent=1))
        except OSError as error:  # no home folder, or a read-only one
            print(f"--cache {path.parent}: not kept ({error.strerror})", file=sys.stderr)
    if longest:
        figures["account"] = operations.account(step.as_text(), figures["bytes"], longest)
    return figures


@contextlib.contextmanager
def _ticking(what: str) -> Iterator[None]:
    """Says on stderr for how long the compiler has been at work."""
    finish, started = threading.Event(), time.monotonic()
    live = sys.stderr.isatty()  # one line that counts; in a file, a line every half minute

    def say(end: str) -> None:
        sys.stderr.write(f"{what}: {time.monotonic() - started:.0f} s{end}")
        sys.stderr.flush()

    def tick():
        while not finish.wait(1.0 if live else 30.0):
            say("\r" if live else "\n")
        say("\n")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finish.set()
        thread.join()


def _bytes_asked_for(message: str) -> float:
    """'Used 20.53G of 15.75G hbm' -> bytes; the compiler names what a program would have needed."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMGT])", message)
    return float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1) if match else float("inf")


def _too_big(
    run: Program, figures: Mapping[str, Any], where: Topology, chip: Chip, cores: int
) -> str:
    """What does not fit, and what would: temporaries grow with the images of a device."""
    peak, state = figures["peak_bytes"] * cores, _state_bytes(run) * cores
    b, batch = run.objective.images_per_device, run.config["data"]["batch_size"]
    per_device = b * max(chip.memory - state, 0) / max(peak - state, 1)
    fitting = 2 ** max(int(per_device).bit_length() - 1, 0) if per_device >= 1 else 0
    message = (
        f"the step needs {peak / GIB:.1f} GiB of a {chip.name}'s {chip.memory / GIB:.0f} GiB at "
        f"{b} images per device ({where.name}, data.batch_size {batch})"
    )
    if not fitting:
        return f"{message}; not even one image fits beside {state / GIB:.1f} GiB of state"
    chips = -(-batch // fitting) // cores
    return (
        f"{message}; about {fitting} images would fit: data.batch_size {fitting * run.mesh.size}, "
        f"or {chips} chips, or numerics.remat to recompute activations"
    )


def _state_bytes(run: Program) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract_state(run)))


def _sizes(
    run: Program, figures: Mapping[str, Any], where: Topology, devices: list, chip: Chip | None
) -> dict[str, Any]:
    cores = topology.cores_per_chip(devices)
    chips, parts = len(devices) // cores, run.config["optimizer"]["micro_batches"]
    values = {
        "topology": where.name + (f" x {where.slices} slices" if where.slices > 1 else ""),
        "chips": chips,
        "hosts": topology.hosts(devices),
        "batch_size": run.config["data"]["batch_size"],
        "micro_batches": parts,
        "images_per_chip": run.objective.images_per_device * cores * parts,
    }
    if canvases := getattr(run.objective, "canvases_per_device", None):
        values["canvases_per_chip"] = canvases * cores * parts
    values |= {
        "compute_dtype": run.config["numerics"]["compute_dtype"],
        "argument_bytes": figures["argument_bytes"] * cores,
        "temporary_bytes": figures["temporary_bytes"] * cores,
        "peak_bytes": figures["peak_bytes"] * cores,
    }
    if chip is not None:
        values["memory_share"] = figures["peak_bytes"] * cores / chip.memory
    return values | {
        "flops": figures["flops"] * cores,
        "bytes": figures["bytes"] * cores,
        "collectives": figures["collectives"],
        "collective_bytes": figures["collective_bytes"],
        "collectives_across_hosts": figures["collectives_across_hosts"],
        "compile_s": figures["compile_s"],
    }


def _times(
    run: Program, figures: Mapping[str, Any], devices: list, chip: Chip | None
) -> dict[str, Any]:
    """Bounds from published peaks: no program is faster, most are slower.

    None with micro-batches: they are a loop, and XLA counts the inside of a loop once.
    """
    if chip is None or run.config["optimizer"]["micro_batches"] > 1:
        return {}
    cores = topology.cores_per_chip(devices)
    compute = figures["flops"] * cores / chip.flops
    memory = figures["bytes"] * cores / chip.bandwidth
    step = max(compute, memory)
    hosts, batch = topology.hosts(devices), run.config["data"]["batch_size"]
    per_core = loader.pipeline_rate(run.config["data"]["canvas_size"])
    images_per_host = batch / step / hosts
    return {
        "bound_compute_s": compute,
        "bound_memory_s": memory,
        "bound_step_s": step,
        "bound_epochs_per_hour": 3600 / step / run.steps_per_epoch,
        "bound_chip_hours": run.total_steps * step / 3600 * len(devices) / cores,
        "steps": run.total_steps,
        "host_images_per_s": images_per_host,
        "loader_images_per_s_per_core": per_core,
        "loader_cores_needed": images_per_host / per_core,
        "host_cores": chip.host_cores or None,
    }


def describe(plan: Mapping[str, Any]) -> str:
    """The plan as a table for people."""

    def kinds(values: Mapping[str, float], unit: str = "") -> str:
        cells = (f"{kind} {_short(v)}{unit}" for kind, v in sorted(values.items()))
        return ", ".join(cells) or "none"

    gib = {"argument_bytes": "arguments", "temporary_bytes": "temporaries", "peak_bytes": "peak"}
    lines = [
        f"{plan['topology']}: {plan['chips']} chips on {plan['hosts']} host(s), "
        f"B = {plan['batch_size']}, {plan['compute_dtype']}",
        f"  {'images per chip':<34}{plan['images_per_chip']}",
    ]
    if plan["micro_batches"] > 1:
        lines.append(
            f"  {'micro-batches':<34}{plan['micro_batches']}; FLOPs, bytes and collectives below are "
            "of one and the update"
        )
    if "canvases_per_chip" in plan:
        lines.append(f"  {'canvases per chip (both sides)':<34}{plan['canvases_per_chip']}")
    for name, label in gib.items():
        share = ""
        if name == "peak_bytes" and "memory_share" in plan:
            share = f"  ({plan['memory_share']:.0%} of the chip)"
        lines.append(f"  {'memory, ' + label:<34}{plan[name] / GIB:.2f} GiB{share}")
    lines += [
        f"  {'FLOPs per step':<34}{plan['flops']:.3g}",
        f"  {'bytes per step':<34}{plan['bytes']:.3g}",
        f"  {'collectives per step':<34}{kinds(plan['collectives'])}",
        f"  {'collective bytes per step':<34}{kinds(plan['collective_bytes'], 'B')}",
        f"  {'collectives that cross hosts':<34}{kinds(plan['collectives_across_hosts'])}",
    ]
    if "bound_step_s" not in plan:
        return "\n".join(lines)
    limit = "memory" if plan["bound_memory_s"] >= plan["bound_compute_s"] else "compute"
    cores = f" of the host's {plan['host_cores']}" if plan["host_cores"] else ""
    enough = not plan["host_cores"] or plan["loader_cores_needed"] <= plan["host_cores"]
    return "\n".join(
        [
            *lines,
            "  bounds from published peaks (no promise; expect more time):",
            f"  {'step time':<34}>= {1e3 * plan['bound_step_s']:.1f} ms ({limit})",
            f"  {'epochs per hour':<34}<= {plan['bound_epochs_per_hour']:.1f}",
            f"  {'chip-hours of the run':<34}>= {plan['bound_chip_hours']:.0f}"
            f" ({plan['steps']} steps)",
            f"  {'images per second and host':<34}<= {plan['host_images_per_s']:.0f}",
            f"  {'loader cores for that':<34}{plan['loader_cores_needed']:.1f}{cores} "
            f"({plan['loader_images_per_s_per_core']:.0f} images/s per core measured here)"
            + ("" if enough else ": the loader cannot feed this bound"),
        ]
    )


def _short(value: float) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:g}"
