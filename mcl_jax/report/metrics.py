"""Metrics to disk: JSON lines, the record; what else shows them is in writers.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcl_jax.report.writers import About, View, open_views

FILE = "metrics.jsonl"
STANDARD = About()


class MetricWriter:
    """Appends {'step', name: float, ...} lines; a resumed run first drops the lines it will redo.

    Args:
      workdir: of the run.
      resume_step: after which the run goes on.
      enabled: False for all but the first process.
      about: which writers there are beside the record, and what they are told.
    """

    def __init__(
        self, workdir: str | Path, resume_step: int, enabled: bool, about: About = STANDARD
    ):
        self._path = Path(workdir) / FILE
        self._enabled = enabled
        self._views: list[View] = []
        if not enabled:
            return
        kept = [line for line in read(workdir) if line["step"] <= resume_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._views = open_views(Path(workdir), resume_step, about)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._enabled or not values:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for view in self._views:
            view.write(step, values)

    def close(self) -> None:
        for view in self._views:
            view.close()


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """All finished lines of a workdir's metrics; a line cut by a kill is left out."""
    path = Path(workdir) / FILE
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
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
