"""Files on a disk that are there wholly or not at all, and what a disk says that takes no more.

Needs nothing but Python.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mcl_jax.errors import CannotSave, UserError, one_line

Content = bytes | memoryview | str | Callable[[IO[bytes]], Any]

# No space, no quota, a limit of file sizes, read-only, a broken disk.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_WORDS = tuple(os.strerror(code) for code in REFUSALS)


def write(path: Path, content: Content) -> None:
    """Writes a file that is there wholly or not at all, whenever the process is killed.

    Args:
      path: of the file; its folder exists.
      content: bytes, text (UTF-8), or a function that is given the open binary file.

    Raises:
      OSError: naming the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # Python names it only where a file is opened
        raise


def write_result(path: Path, content: Content) -> None:
    """`write` of what a run is for; CannotSave if it fails."""
    with saving(path, OSError):
        write(path, content)


@contextlib.contextmanager
def saving(place: os.PathLike | str, kinds: type[Exception] = Exception) -> Iterator[None]:
    """CannotSave, with the place, where the disk refuses what is written inside.

    Args:
      place: what the user knows of what is written.
      kinds: OSError: all of them are the disk's or bucket's; else those that `is_refusal` knows.
    """
    try:
        yield
    except kinds as error:
        if kinds is not OSError and not is_refusal(error):
            raise
        reason = getattr(error, "strerror", None) or one_line(error, most=300)
        raise CannotSave(
            f"{place} cannot be written: {reason}. Make room, then run the same command again"
        ) from error


def is_refusal(error: Exception) -> bool:
    """Whether a disk took no more; libraries that are no Python tell it in words alone."""
    if isinstance(error, OSError):
        return error.errno in REFUSALS
    is_ours = isinstance(error, UserError)
    return not is_ours and any(words in str(error) for words in _WORDS)


def mistake(error: Exception) -> str | None:
    """One line about a disk that took no more, where nobody said what for; None: another error."""
    if not is_refusal(error):
        return None
    return (
        f"{one_line(error, most=300)}: the disk is full, read-only or broken. Make room, then run the "
        "same command again"
    )
