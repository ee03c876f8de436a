"""How long a run takes from the command to its first step, phase by phase, in CPU seconds.

CPU seconds, for wall seconds depend on what else the machine does. Two runs of one step, each in a
process of its own: the first fills a compile cache, the second is measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcl_jax.bench import commands
from mcl_jax.runtime import compile_cache
from mcl_jax.settings import door

# What was the last to end, in a run's order: each phase begins where the one before it ended.
PHASES = (
    "imports",
    "data, program, kNN set-up",
    "shapes of the state, its checkpoint",
    "tracing the train step",
    "executables from the cache, initial state",
    "the first step is sent off",
    "evaluation, first metrics",
)


def measure(config: Sequence[str], seconds: float) -> dict[str, Any]:
    """Starts a run twice.

    Args:
      config: arguments of `mcl-jax pretrain` that make its configuration.
      seconds: each of the two may take.

    Returns:
      'cold' and 'warm': a row for each of PHASES with 'phase', 'cpu_s' (of all threads) and
      'main_thread_cpu_s'.

    Raises:
      commands.CommandFailed: if a run does not reach its first step.
    """
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = compile_cache.variables(Path(folder) / "cache")
        for name in ("cold", "warm"):
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "mcl_jax.commands.watched_start", str(out), *config]
            command += [f"--workdir={Path(folder) / name}", "--stop_after=1"]
            process = commands.run([*command, "--config.log.every_steps=1"], seconds, environment)
            rows = json.loads(out.read_text()) if out.exists() else []
            if process.code or [row["phase"] for row in rows] != list(PHASES):
                end = process.output[-commands.TAIL :]
                summary = f"exit code {process.code}, {len(rows)} phases; {end}"
                raise commands.CommandFailed(f"the {name} start: {summary}")
            result[name] = rows
    return result


def door_ms(config: Mapping[str, Any], repeats: int = 20) -> float:
    """CPU milliseconds in which all keys of a configuration are checked."""
    begin = time.process_time()
    for _ in range(repeats):
        door.check(config)
    return 1000 * (time.process_time() - begin) / repeats


def as_text(result: Mapping[str, Any]) -> str:
    """`measure`'s result as a table, and 'door_ms' if it is there."""
    lines = [f"{'CPU seconds, warm compile cache':<34}{'phase':>8}{'so far':>8}{'main':>8}"]
    total = 0.0
    for row in result["warm"]:
        total += row["cpu_s"]
        numbers = (row["cpu_s"], total, row["main_thread_cpu_s"])
        lines.append(f"{row['phase']:<34}" + "".join(f"{x:>8.2f}" for x in numbers))
    if "door_ms" in result:
        lines.append(f"of this, checking the configuration: {result['door_ms']:.2f} ms")
    return "\n".join(lines)


class Watch:
    """Notes the clocks whenever a phase ends, each once."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._last = (0.0, 0.0)

    def mark(self) -> None:
        now = (time.process_time(), time.thread_time())
        names = ("cpu_s", "main_thread_cpu_s")
        spent = {n: new - old for n, new, old in zip(names, now, self._last, strict=True)}
        self.rows.append({"phase": PHASES[len(self.rows)]} | spent)
        self._last = now

    def after(self, number: int, owner: Any, name: str, condition: Callable[..., bool]) -> None:
        """Once so many phases have ended, the next one ends with a call of owner.name that meets
        the condition."""
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if len(self.rows) == number and condition(*arguments):
                self.mark()
            return result

        setattr(owner, name, watched)
