"""How long a run takes from the command to its first step, phase by phase, in CPU seconds.

CPU seconds, for wall seconds depend on what else the machine does. Two runs of one step, each in a
process of its own: the first fills a compile cache, the second is measured.
"""

import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcl_jax.bench import commands

# What was the last to end, in a run's order: each phase begins where the one before it ended.
PHASES = (
    "imports",
    "data, program, kNN set-up",
    "initial state",
    "tracing the train step",
    "its executable from the cache",
    "the first step is sent off",
    "evaluation, first metrics",
)


def measure(config: Sequence[str], seconds: float) -> dict[str, Any]:
    """Starts a run twice.

    Args:
      config: arguments of `mcl-jax pretrain` that make its configuration.
      seconds: each of the two may take.

    Returns:
      'cold' and 'warm': a row for each of PHASES with 'phase', 'cpu_s' (of all threads),
      'main_thread_cpu_s' and 'wall_s'.

    Raises:
      commands.CommandFailed: if a run does not reach its first step.
    """
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        # the same conditions as in a workdir: small programs are kept too
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in ("cold", "warm"):
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "mcl_jax.bench.start", str(out), *config]
            command += [f"--workdir={Path(folder) / name}", "--stop_after=1"]
            done = commands.run([*command, "--config.log.every_steps=1"], seconds, environment)
            rows = json.loads(out.read_text()) if out.exists() else []
            if done.code or [row["phase"] for row in rows] != list(PHASES):
                raise commands.CommandFailed(f"the {name} start: {done.said[-commands.TAIL :]}")
            result[name] = rows
    return result


def as_text(result: Mapping[str, Any]) -> str:
    """`measure`'s result as a table."""
    lines = [f"{'CPU seconds, warm compile cache':<34}{'phase':>8}{'so far':>8}{'main':>8}"]
    total = 0.0
    for row in result["warm"]:
        total += row["cpu_s"]
        numbers = (row["cpu_s"], total, row["main_thread_cpu_s"])
        lines.append(f"{row['phase']:<34}" + "".join(f"{x:>8.2f}" for x in numbers))
    return "\n".join(lines)


class _Watch:
    """Notes the clocks whenever a phase ends, each once."""

    def __init__(self, wall_s: float):
        self.rows: list[dict[str, Any]] = []
        self._last = (0.0, 0.0, wall_s)

    def mark(self) -> None:
        now = (time.process_time(), time.thread_time(), time.time())
        names = ("cpu_s", "main_thread_cpu_s", "wall_s")
        spent = {n: new - old for n, new, old in zip(names, now, self._last, strict=True)}
        self.rows.append({"phase": PHASES[len(self.rows)]} | spent)
        self._last = now

    def after(self, number: int, owner: Any, name: str, wanted: Callable[..., bool]) -> None:
        """Once so many phases have ended, the next one ends with a wanted call of owner.name."""
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if len(self.rows) == number and wanted(*arguments):
                self.mark()
            return result

        setattr(owner, name, watched)


def _run(out: str, arguments: Sequence[str]) -> None:
    """`mcl-jax pretrain` with clocks; writes `_Watch.rows` to a file."""
    watch = _Watch(time.time() - time.process_time())

    import jax

    from mcl_jax import program, train
    from mcl_jax.report.metrics import MetricWriter
    from mcl_jax.runtime.preemption import Preemption

    watch.mark()

    def always(*_: Any) -> bool:
        return True

    ends = [
        (train, "KnnMonitor", always),
        (train, "_restore_or_start", always),
        (program, "lower_step", always),
        (jax.stages.Lowered, "compile", always),
        (Preemption, "guard_work", always),
        (MetricWriter, "write", lambda writer, step, values: step == 1),
    ]
    for number, end in enumerate(ends, start=1):
        watch.after(number, *end)
    try:
        sys.argv[1:] = ["pretrain", *arguments]
        runpy.run_module("mcl_jax", run_name="__main__", alter_sys=False)
    finally:
        Path(out).write_text(json.dumps(watch.rows))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as the command does, before JAX is there
    _run(sys.argv[1], sys.argv[2:])
