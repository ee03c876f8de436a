"""Writes that a run can do without: metrics, pictures, pages, signs of life."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

_told: set[str] = set()
_lock = threading.Lock()


def begin() -> None:
    """A new run: every kind of failure may be told again."""
    with _lock:
        _told.clear()


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Lets the run go on if the disk or the bucket fails inside; told once for each `what`.

    Example:
      with optional("curves.png"):
          storage.write(workdir / "curves.png", picture)
    """
    try:
        yield
    except OSError as error:
        tell(what, error)


def tell(what: str, error: Exception) -> None:
    """Says on stderr that `what` could not be written; once a run."""
    with _lock:
        if what in _told:
            return
        _told.add(what)
    print(f"{what}: not written, the run goes on without ({one_line(error)})", file=sys.stderr)


class Forgiving:
    """A stream whose disk may be full: what cannot be written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class Abandoned:
    """A stream whose reader may go away, as `| head -1` does: the rest is dropped, nothing raised."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._to_nobody():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._to_nobody():
            self._stream.flush()

    @contextlib.contextmanager
    def _to_nobody(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what it still holds must not fail again when Python ends
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)


def one_line(error: Exception) -> str:
    """An error's message without line breaks, at most 200 characters; its kind if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
