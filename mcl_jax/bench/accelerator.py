"""Everything that is to be known of one accelerator, as parts in order of value.

Every part is a command of its own, so that one that fails, or takes the device down with it, leaves
the others their turn, and so that each has the device's memory alone.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcl_jax.bench import commands, parity, restart
from mcl_jax.bench.parts import Budget, Part, Results
from mcl_jax.runtime import compile_cache

MCL_JAX = (sys.executable, "-m", "mcl_jax")
# Last seconds of the budget in which a study saves what it is at and ends.
SAVE_S = 20.0
PARITY_STEPS = 5
# What a part takes at least, in seconds: by one H200 and 16 cores, compile times included
# (docs/gpu.md); `largest`, `study` and `change` by those of the others.
LEAST_S = {
    "pretrain": 240.0,
    "parity": 140.0,
    "speed": 110.0,
    "largest": 150.0,
    "torch": 110.0,
    "loader": 35.0,
    "profile": 30.0,
    "study": 120.0,
    "change": 110.0,
}
# Overrides of the run that is killed: a line and a checkpoint often enough, and nothing else.
RESTARTED = (
    "--config.log.every_steps=1",
    "--config.log.montages=0",
    "--config.knn.every_epochs=0",
)
PREPARE = (
    "import json, sys; from mcl_jax.data.sources import open_source; "
    "open_source(*json.loads(sys.argv[1]))"
)


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
      config: as configs/base.py, plain.
      config_arguments: the command line's arguments that make it.
      scratch: folder for run folders and the compile cache; a new one for a cold start.
      steps: timed steps.
      restart_steps: of the run that is killed and resumed.
      loader_s: seconds per stage of the loader.
      study: arguments of mcl-jax study; '' for no study.
      changes: what to change for the part `change`, each as arguments of mcl-jax bench step and
        NAME=VALUE environment variables.
      room_gib: memory for the largest batch; 0: all of the device.
      least_s: part -> see `parts.Part`.
    """

    config: Mapping[str, Any]
    config_arguments: Sequence[str]
    scratch: Path
    steps: int = 20
    restart_steps: int = 60
    loader_s: float = 2.0
    study: str = ""
    changes: Sequence[str] = ()
    room_gib: float = 0.0
    least_s: Mapping[str, float] | None = None


def parts(request: Request, names: Sequence[str] = ()) -> list[Part]:
    """The parts, by default in order of value.

    Args:
      names: only these, in this order; empty: all, `change` only where there are changes.

    Raises:
      KeyError: for a name that is not in LEAST_S.
    """
    measures: dict[str, Callable[[Request, Budget, Results], Mapping[str, Any]]] = {
        "pretrain": _pretrain,
        "parity": _parity,
        "speed": _speed,
        "largest": _largest,
        "torch": _torch,
        "loader": _loader,
        "profile": _profile,
        "study": _study,
        "change": _change,
    }
    least = {**LEAST_S, **(request.least_s or {})}

    def part(name: str) -> Part:
        measure = measures[name]
        return Part(name, least[name], lambda budget, results: measure(request, budget, results))

    selection = names or [n for n in measures if n != "change" or request.changes]
    return [part(name) for name in selection]


def describe_machine(seconds: float = 120.0) -> dict[str, Any]:
    """{'device', 'platform', 'devices', 'jax', 'python', 'cores'} of this machine.

    Asked in a process of its own: whoever asks keeps the device's memory.
    """
    code = (
        "import jax, json; d = jax.devices(); print(json.dumps({'device': d[0].device_kind, "
        "'platform': d[0].platform, 'devices': len(d), 'jax': jax.__version__}))"
    )
    output = commands.demand(commands.run([sys.executable, "-c", code], seconds))
    about = json.loads(output.strip().splitlines()[-1])
    python = ".".join(map(str, sys.version_info[:3]))
    return about | {"python": python, "cores": len(os.sched_getaffinity(0))}


def _environment(request: Request) -> dict[str, str]:
    return compile_cache.variables(request.scratch / "xla_cache")


def _pretrain(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    """mcl-jax pretrain on its data: start, kill, resume."""
    del results
    data, steps = request.config["data"], request.restart_steps
    arguments = json.dumps([data["dataset"], data["split"], data["data_dir"] or None])
    # data that are rendered at their first use must not count as part of the start
    command = [sys.executable, "-c", PREPARE, arguments]
    commands.demand(commands.run(command, budget.left(), {"JAX_PLATFORMS": "cpu"}))
    command = [*MCL_JAX, "pretrain", *request.config_arguments, *RESTARTED]
    command += [f"--config.log.checkpoint_steps={max(1, steps // 3)}"]
    return restart.measure(
        command,
        request.scratch / "pretrain",
        environment=_environment(request),
        steps=steps,
        kill_after=steps // 2,
        seconds=budget.left(),
    )


def _parity(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    """Losses on the accelerator and on the CPU, in float32 and in float64, all at the same time."""
    del results
    with ThreadPoolExecutor(len(parity.LEGS)) as pool:
        legs = dict(pool.map(lambda leg: (leg, _parity_leg(request, budget, leg)), parity.LEGS))
    return parity.compare(legs)


def _parity_leg(request: Request, budget: Budget, leg: str) -> dict[str, Any]:
    place, dtype = leg.split()
    config, out = (request.scratch / f"parity {leg}{end}.json" for end in ("", " result"))
    config.write_text(json.dumps(parity.small(request.config, dtype)))
    # two share the accelerator, whose memory each would take for itself
    environment = _environment(request) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment |= {"JAX_PLATFORMS": "cpu"} if place == "cpu" else {}
    environment |= {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
    command = [sys.executable, "-m", "mcl_jax.bench.parity", config, PARITY_STEPS, out]
    commands.demand(commands.run(command, budget.left(), environment))
    return json.loads(out.read_text())


def _bench_step(
    request: Request,
    budget: Budget,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    out = request.scratch / "bench_step.json"
    out.unlink(missing_ok=True)
    command = [*MCL_JAX, "bench", "step", *request.config_arguments]
    command += [f"--steps={request.steps}", f"--json={out}", *arguments]
    environment = _environment(request) | dict(environment or {})
    commands.demand(commands.run(command, budget.left(), environment))
    return json.loads(out.read_text())


def _speed(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    del results
    return _bench_step(request, budget)


def _largest(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    del results
    room = f"--room_gib={request.room_gib}"
    most = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".95"}
    return _bench_step(request, budget, "--largest-batch", room, environment=most)


def _torch(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    del results
    return _bench_step(request, budget, "--versus-torch")


def _profile(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    del results
    result = _bench_step(request, budget, "--profile=3")
    names = ("batch_size", "seconds_per_step", "profile")
    return {name: result[name] for name in names}


def _loader(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    """The input pipeline on all cores, against the step where its speed is known."""
    cores = len(os.sched_getaffinity(0))
    out = request.scratch / "loader.json"
    command = [*MCL_JAX, "bench", "data", f"--seconds={request.loader_s}"]
    pairs = {(0, 1), (0, cores), (max(1, cores // 2), 2), (cores, 1)}
    command += [f"--pipelines={workers},{threads}" for workers, threads in sorted(pairs)]
    command += [f"--json={out}"]
    commands.demand(commands.run(command, budget.left(), {"JAX_PLATFORMS": "cpu"}))
    result = json.loads(out.read_text())
    rates = [row["images_per_s"] for row in result["rows"] if "whole pipeline" in row["stage"]]
    best = {"images_per_s": max(rates)}
    steps = [results[name]["images_per_s"] for name in ("speed", "largest") if name in results]
    if steps:
        best |= {"step_images_per_s": max(steps), "times_the_step": max(rates) / max(steps)}
    return best | result


def _study(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    """The comparison of methods, for the time that is left; finished rows are kept."""
    del results
    folder = request.scratch / "study_results"
    command = [*MCL_JAX, "study", *shlex.split(request.study)]
    command += ["--workdir", request.scratch / "study", "--results", folder]
    command += ["--document", request.scratch / "study.md"]
    ended = commands.run(command, budget.left(), _environment(request), grace_s=SAVE_S)
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not ended.cut:
        commands.demand(ended)
    return {
        "finished": len(rows),
        "whole": not ended.cut,
        "rows": rows,
        "said": ended.output[-commands.TAIL :],
    }


def _change(request: Request, budget: Budget, results: Results) -> Mapping[str, Any]:
    """mcl-jax bench step as in `speed`, then once per change; `speed` first where it is not known."""
    before = results.get("speed") or _bench_step(request, budget)
    result: dict[str, Any] = {"before": before}
    for change in request.changes:
        words = shlex.split(change)
        variables = dict(word.split("=", 1) for word in words if not word.startswith("-"))
        arguments = [word for word in words if word.startswith("-")]
        after = _bench_step(request, budget, *arguments, environment=variables)
        result[change] = after | {"speedup": after["images_per_s"] / before["images_per_s"]}
    return result
