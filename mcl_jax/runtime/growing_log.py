"""What grows while a run goes on: metrics and events, on a disk or in a bucket.

On a disk a log is one file, written at every flush. Objects in a bucket cannot be appended to: there
a log is a row of objects NAME.GENERATION-PART. A thread writes what is new to the last part, anew as a
whole, at most every `UPLOAD_S` seconds, and begins another part after `PART_BYTES`. That is one
request for every upload, few objects, and a kill loses `UPLOAD_S` seconds at most. A log that is
begun anew is another generation; readers take the newest, part after part, as one stream.

A disk or bucket that fails costs nothing as long as the process lives: what could not be written
stays in memory (`HELD_BYTES` at most) for the next try, and the failure is told once.
"""

import contextlib
import os
import re
import threading
from pathlib import Path

from mcl_jax.runtime import storage
from mcl_jax.runtime.optional import tell
from mcl_jax.runtime.storage import Place

UPLOAD_S = 10.0
PART_BYTES = 256 * 1024
HELD_BYTES = 64 * 2**20


def open_log(place: Place, keep: bytes | None = None) -> "Log":
    """A log to append to.

    Args:
      place: of the log; its folder exists.
      keep: what it begins with, instead of what is there; None: goes on with that.
    """
    return FileLog(place, keep) if isinstance(place, Path) else ObjectLog(place, keep)


def read(place: Place) -> bytes:
    """The whole stream; empty if there is none."""
    if isinstance(place, Path):
        return place.read_bytes() if place.is_file() else b""
    return b"".join(storage.read(part) for part in _newest(_parts(place)))


class Log:
    """Bytes on their way to a file; never raises because a disk or bucket fails."""

    def __init__(self, place: Place):
        self._place = place
        self._open = b""  # not a whole record yet
        self._ready = b""  # whole records, not written yet
        self._lock, self._putting = threading.Lock(), threading.Lock()

    def write(self, data: bytes) -> None:
        """Adds to the stream; it leaves after the next `flush`."""
        with self._lock:
            if self._open or len(self._ready) < HELD_BYTES:
                self._open += data

    def flush(self) -> None:
        """The end of a line or record: what was written until here may leave the process."""
        with self._lock:
            self._ready, self._open = self._ready + self._open, b""

    def sync(self) -> None:
        """Blocks until all that was flushed has left, or could not."""
        with self._putting:
            with self._lock:
                data = self._ready
            if not data:
                return
            try:
                self._put(data)
            except OSError as error:
                tell(self._place.name, error)
                return
            with self._lock:
                self._ready = self._ready[len(data) :]

    def close(self) -> None:
        self.flush()
        self.sync()

    def _put(self, data: bytes) -> None:
        raise NotImplementedError


class FileLog(Log):
    """One file, written at every flush."""

    def __init__(self, place: Path, keep: bytes | None):
        super().__init__(place)
        if keep is not None and (keep or place.exists()):
            try:
                storage.write(place, keep)
            except OSError as error:
                tell(place.name, error)
        self._size = place.stat().st_size if place.exists() else 0

    def flush(self) -> None:
        super().flush()
        self.sync()

    def _put(self, data: bytes) -> None:
        try:
            with self._place.open("ab") as file:
                file.write(data)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self._place, self._size)  # half of a line would spoil the next one
            raise
        self._size += len(data)


class ObjectLog(Log):
    """A row of objects in a bucket, written by a thread."""

    def __init__(self, place: Place, keep: bytes | None):
        super().__init__(place)
        old, self._part, self._content = _parts(place), 0, b""
        self._generation = int(_generation(old[-1])) + 1 if old else 0
        self._ready = keep if keep is not None else read(place)
        self.sync()  # the new generation is there before the old one goes
        if not self._ready:
            for part in old:
                storage.remove(part)
        self._asked, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._upload, daemon=True)
        self._thread.start()

    def flush(self) -> None:
        super().flush()
        self._asked.set()

    def close(self) -> None:
        self._closed.set()
        self._asked.set()
        self._thread.join()
        super().close()

    def _upload(self) -> None:
        while not self._closed.is_set():
            self._asked.wait()
            self._asked.clear()
            self.sync()
            if self._ready:
                self._asked.set()  # the next try
            self._closed.wait(UPLOAD_S)

    def _put(self, data: bytes) -> None:
        content = self._content + data
        name = f"{self._place.name}.{self._generation:04d}-{self._part:06d}"
        storage.write(self._place.with_name(name), content)
        self._content = content
        if len(content) > PART_BYTES:
            self._part, self._content = self._part + 1, b""


def _parts(place: Place) -> list[Place]:
    """A log's objects of all generations, in order."""
    pattern = re.compile(re.escape(place.name) + r"\.\d{4,}-\d{6,}")
    names = [name for name in storage.names(place.parent) if pattern.fullmatch(name)]
    return [place.with_name(name) for name in names]


def _newest(parts: list[Place]) -> list[Place]:
    """Those of the newest generation."""
    return [part for part in parts if _generation(part) == _generation(parts[-1])]


def _generation(part: Place) -> str:
    return part.name.rpartition(".")[2].partition("-")[0]
