"""Metrics to disk or bucket: JSON lines (the record) and TensorBoard events (a view of it)."""

import json
import os
from typing import Any

from mcl_jax.runtime import log, storage
from mcl_jax.runtime.optional import optional

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
_PREFIX = "mcl_jax"  # of paths whose event files are logs of ours


class MetricWriter:
    """Appends {'step', name: float, ...} lines; a resumed run first drops the lines it will redo.

    A disk or bucket that fails never raises, see `runtime/log.py`.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int, enabled: bool):
        self._enabled = enabled
        self._events = None
        if not enabled:
            return
        folder = storage.absolute(workdir)
        kept = "".join(
            json.dumps(line) + "\n" for line in read(folder) if line["step"] <= resume_step
        )
        self._lines = log.open_log(folder / FILE, keep=kept.encode())
        with optional(EVENTS):
            storage.make_folder(folder / EVENTS)
            self._events = _event_writer(folder / EVENTS, resume_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self._enabled or not values:
            return
        self._lines.write((json.dumps({"step": step} | values) + "\n").encode())
        self._lines.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def sync(self) -> None:
        """Blocks until the lines written so far have left, or could not."""
        if self._enabled:
            self._lines.sync()

    def close(self) -> None:
        if not self._enabled:
            return
        self._lines.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: storage.Place, resume_step: int) -> Any:
    # here, for it imports torch where there is one: seconds that only the writing process needs
    from tensorboardX import SummaryWriter, record_writer

    record_writer.register_writer_factory(_PREFIX, _EventFiles)
    return SummaryWriter(f"{_PREFIX}:{folder}", purge_step=resume_step + 1, flush_secs=30)


class _EventFiles:
    """How tensorboardX opens a file: its own writing thread would die of a full disk."""

    @staticmethod
    def directory_check(path: str) -> None:
        """The folder was made before."""

    @staticmethod
    def open(path: str) -> log.Log:
        return log.open_log(storage.locate(path.removeprefix(f"{_PREFIX}:")))


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """All finished lines of a workdir's metrics; a line cut by a kill is left out."""
    lines = []
    for line in log.read(storage.locate(workdir) / FILE).decode(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
