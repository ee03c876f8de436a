"""Writes that a run can do without: metrics, pictures, pages, signs of life."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from mcl_jax.errors import one_line

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
        with self._forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiven():
            self._stream.flush()

    def _forgiven(self) -> contextlib.AbstractContextManager:
        return contextlib.suppress(OSError)


class Unread(Forgiving):
    """A stream whose reader may leave, as in `mcl-jax ... | head`: then the rest goes nowhere."""

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what is still in the stream's buffer would fail at the exit
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self._stream.fileno())
            os.close(nobody)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside, printing to a stdout or stderr that nobody reads any more is no error.

    Nor is a log on a full disk.
    """
    out, errors = Unread(sys.stdout), Forgiving(Unread(sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            out.flush()
            errors.flush()
