"""Metrics to disk or bucket: JSON lines, the record; what else shows them is in writers.py."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mcl_jax.report.writers import About, Sink, open_sinks
from mcl_jax.runtime import log, storage

FILE = "metrics.jsonl"
STANDARD = About()


class MetricWriter:
    """Appends {'step', name: float, ...} lines; a resumed run first drops the lines it will redo.

    A disk or bucket that fails never raises, see `runtime/log.py`.

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
        enabled: bool,
        about: About = STANDARD,
    ):
        self._enabled = enabled
        self._sinks: list[Sink] = []
        if not enabled:
            return
        folder = storage.absolute(workdir)
        kept = "".join(
            json.dumps(line) + "\n" for line in read(folder) if line["step"] <= resume_step
        )
        self._lines = log.open_log(folder / FILE, keep=kept.encode())
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
    """All finished lines of a workdir's metrics; a line cut by a kill is left out."""
    lines = []
    for line in log.read(storage.locate(workdir) / FILE).decode(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def training_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Of all calls that trained a run, from its metrics: evaluations and compilations left out."""
    seconds, step = 0.0, 0
    for line in lines:
        if line.get("images_per_s"):
            seconds += (line["step"] - step) * batch_size / line["images_per_s"]
            step = line["step"]
    return seconds
