"""Metrics to disk or bucket: JSON lines, the record; what else shows them is in writers.py."""

import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mcl_jax.report.writers import About, Sink, open_sinks
from mcl_jax.runtime import growing_log, storage

FILE = "metrics.jsonl"
STANDARD = About()


class MetricWriter:
    """Appends {'step', name: float, ...} lines; a resumed run first drops the lines it will redo.

    A disk or bucket that fails never raises, see `runtime/growing_log.py`.

    Args:
      workdir: of the run.
      resume_step: after which the run goes on.
      enabled: False for all but the first process.
      about: which writers there are beside the record, and what they are told.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        resume_step: int,
        *,
        enabled: bool,
        about: About = STANDARD,
    ):
        self._enabled = enabled
        self._sinks: list[Sink] = []
        if not enabled:
            return
        folder = storage.absolute(workdir)
        lines = "".join(
            json.dumps(line) + "\n" for line in read(folder) if line["step"] <= resume_step
        )
        self._lines = growing_log.open_log(folder / FILE, keep=lines.encode())
        self._sinks = open_sinks(folder, resume_step, about)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._enabled or not values:
            return
        self._lines.write((json.dumps({"step": step} | values) + "\n").encode())
        self._lines.flush()
        for sink in self._sinks:
            sink.write(step, values)

    def sync(self) -> None:
        """Blocks until the lines written so far have left, or could not."""
        if self._enabled:
            self._lines.sync()

    def close(self) -> None:
        if self._enabled:
            self._lines.close()
        for sink in self._sinks:
            sink.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """All finished lines of a workdir's metrics: {'step': whole number, name: number, ...}.

    A line cut by a kill is left out. Of others that are no rows, it is said once how many there are.
    """
    place = storage.locate(workdir) / FILE
    lines = growing_log.read(place).decode(errors="replace").split("\n")[:-1]
    rows = [row for row in map(_row, lines) if row is not None]
    if len(rows) < len(lines):
        _say_left_out(str(place), len(lines) - len(rows))
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """A line as numbers by name; None: it is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or abs(row["step"]) >= 2**63:
        return None
    numbers = all(isinstance(x, float) or (type(x) is int and abs(x) < 2**63) for x in row.values())
    return row if numbers else None


@functools.cache
def _say_left_out(place: str, count: int) -> None:
    """Once in a process: a run reads its metrics again and again."""
    print(f"{place}: damaged lines are left out ({count})", file=sys.stderr)


def training_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Of all calls that trained a run, from its metrics: evaluations and compilations left out."""
    seconds, step = 0.0, 0
    for line in lines:
        if line.get("images_per_s"):
            seconds += (line["step"] - step) * batch_size / line["images_per_s"]
            step = line["step"]
    return seconds
