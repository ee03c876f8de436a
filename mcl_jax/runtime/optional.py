"""Writes that a run can do without: metrics, pictures, pages, signs of life."""

import contextlib
import sys
import threading
from collections.abc import Iterator

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


def one_line(error: Exception) -> str:
    """An error's message without line breaks, at most 200 characters; its kind if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
