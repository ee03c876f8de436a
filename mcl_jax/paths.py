"""Paths that a user gives: expanded, checked, and refused in one line before anything is opened.

'~' is the home folder; variables such as $DATA are left to the shell. A path in a bucket
(gs://BUCKET/NAME) passes through as it is: whether it can be used is the storage's to say. Names of
single images may be any bytes; the paths here may not, for they go on into JSON files, pages and
libraries that take UTF-8 alone.

Needs nothing but Python.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import os
import re
import stat
import tempfile

from mcl_jax.errors import UserError

_BUCKET = re.compile(r"gs://?(?=[^/])")  # pathlib makes gs:/BUCKET of gs://BUCKET
_PICTURES = (".png", ".svg", ".pdf", ".jpg")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def shown(path: str | os.PathLike) -> str:
    r"""A path for messages, pages and files: bytes that are no UTF-8 become replacement characters.

    Example:
      >>> shown(os.fsdecode(b"caf\xe9.jpg"))
      'caf\ufffd.jpg'
    """
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half of a pair, as a JSON file may hold it
        return text.encode("utf-8", "replace").decode("utf-8")


def native(name: str) -> str:
    """A name from a file (JSON, say), as this process's file functions take it in every locale.

    Example:
      open(native(image.file_name), "rb")  # also where LC_ALL=C makes file names ASCII
    """
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace").decode("utf-8")


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether it lies in a bucket instead of on a disk."""
    return _BUCKET.match(os.fspath(path)) is not None


def text_of(path: str | os.PathLike, name: str) -> str:
    """A path as text; UserError for what is none."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise UserError(f"{name} is {path!r}, not a path") from None


def expanded(path: str | os.PathLike, name: str) -> str:
    """A path with '~' replaced; the current folder stays what it is relative to.

    Args:
      path: what the user gave.
      name: of the flag or key, for messages.

    Raises:
      UserError: for an empty path, a URL of another kind, bytes that are no UTF-8 or that no path
        can have, and for '~' where there is no home folder.
    """
    text = text_of(path, name)
    if not text.strip():
        raise UserError(f"{name} is empty; give a path")
    if is_bucket(text):
        return _BUCKET.sub("gs://", text, count=1)
    if _URL.match(text):
        raise _refused(name, text, "is a URL; give a path or gs://BUCKET/NAME")
    full = os.path.expanduser(text)
    if "\0" in full:
        raise _refused(name, full, "has a zero byte, which no path can have")
    try:
        full.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise _refused(name, full, "has bytes that are no UTF-8; give it another name") from None
    if full.startswith("~") and not os.path.lexists(full.partition("/")[0]):
        raise _refused(
            name, full, "starts with '~', but there is no such home folder; give a whole path"
        )
    return full


def split_argument(text: str) -> tuple[str, str | None]:
    """(FILE, ARGUMENT) of FILE:ARGUMENT; None without one. FILE itself may hold colons.

    Example:
      >>> split_argument("18:30/{own}.py:c4,loss=b")
      ('18:30/{own}.py', 'c4,loss=b')
    """
    ends = [match.start() for match in re.finditer("(?=:)|$", text)]
    for end in reversed(ends):
        if os.path.isfile(os.path.expanduser(text[:end])):
            break
    else:  # there is no such file: which one was meant?
        suffix = re.match(r".*?\.py(?=:|$)", text, re.DOTALL)
        end = suffix.end() if suffix else ends[0]
    return text[:end], text[end + 1 :] if end < len(text) else None


def on_disk(path: str | os.PathLike, name: str) -> str:
    """UserError for a path in a bucket, where only disks are read and written; as it is otherwise."""
    text = os.fspath(path)
    if is_bucket(text):
        bucket = _BUCKET.sub("gs://", text, count=1)
        raise UserError(
            f"{name} {bucket}: this command uses disks alone; give a path of this machine"
        )
    return text


def existing_file(path: str | os.PathLike, name: str, hint: str = "") -> str:
    """A file that can be read; arguments and errors as `existing_folder`."""
    full = expanded(path, name)
    if is_bucket(full):
        return full
    mode = _mode(full, name, hint)
    if stat.S_ISDIR(mode):
        raise _refused(name, full, "is a folder, not a file", hint)
    if not stat.S_ISREG(mode):
        raise _refused(name, full, "is no file that can be read twice", hint)
    _demand(full, name, os.R_OK, "may not be read")
    return full


def existing_folder(path: str | os.PathLike, name: str, hint: str = "") -> str:
    """A folder that can be read.

    Args:
      path: what the user gave.
      name: of the flag or key, for messages: '--workdir'.
      hint: what would be right, appended to the message.

    Raises:
      UserError: not there, of another kind, a broken link, or not allowed; the message names `name`,
        the path and what is wrong with it.

    Example:
      existing_folder("~/photos", "--folder")  # '/home/ada/photos'
    """
    full = expanded(path, name)
    if is_bucket(full):
        return full
    if not stat.S_ISDIR(_mode(full, name, hint)):
        raise _refused(name, full, "is a file, not a folder", hint)
    _demand(full, name, os.R_OK | os.X_OK, "may not be read")
    return full


def output_folder(path: str | os.PathLike, name: str, hint: str = "give a folder") -> str:
    """A folder to write to: it is there, or it can be made. Nothing is made yet.

    Args:
      path, name: see `existing_folder`.
      hint: what would be right, if it is a file.

    Raises:
      UserError: a file is in the way, or the place may not be written to.
    """
    full = expanded(path, name)
    if is_bucket(full):
        return full
    _demand_native(full, name)
    nearest = _nearest(full, name)
    if not os.path.isdir(nearest):
        if nearest == os.path.abspath(full):
            raise _refused(name, full, "is a file", hint)
        raise _refused(name, full, f"cannot be made: {_quoted(nearest)} is a file")
    _demand_writable(full, nearest, name)
    return full


def output_file(path: str | os.PathLike, name: str) -> str:
    """A file to write: its folder is there, and it may be written or replaced. Nothing is written.

    Raises:
      UserError: there is no such folder, the path is a folder, or may not be written.
    """
    full = expanded(path, name)
    if is_bucket(full):
        return full
    folder = os.path.dirname(os.path.abspath(full))
    nearest = _nearest(full, name)
    if os.path.isdir(nearest) and os.path.realpath(nearest) != os.path.realpath(folder):
        if os.path.realpath(nearest) == os.path.realpath(full):
            raise _refused(name, full, "is a folder; give a file")
        raise _refused(name, full, f"cannot be written: there is no folder {_quoted(folder)}")
    if full.endswith("/"):
        raise _refused(name, full, "is a folder; give a file")
    if not os.path.isdir(folder):
        raise _refused(name, full, f"cannot be written: {_quoted(nearest)} is a file")
    _demand_writable(full, folder, name)
    return full


def output_place(path: str | os.PathLike, name: str) -> str:
    """A folder to write to, or a file of an image's suffix; errors as those of the two."""
    is_file = os.fspath(path).lower().endswith(_PICTURES)
    return (output_file if is_file else output_folder)(path, name)


def _mode(path: str, name: str, hint: str) -> int:
    """What kind of thing lies there, behind links."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        raise _refused(name, path, _reason(path, error), hint) from None


def _nearest(path: str, name: str) -> str:
    """The path, or the nearest folder above it that is there."""
    place = os.path.abspath(path)
    while True:
        try:
            os.stat(place)
            return place
        except NotADirectoryError:
            pass
        except FileNotFoundError as error:
            if os.path.islink(place):
                raise _refused(name, path, _reason(place, error)) from None
        except OSError as error:
            raise _refused(name, path, _reason(place, error)) from None
        if os.path.dirname(place) == place:
            return place
        place = os.path.dirname(place)


def _reason(path: str, error: OSError) -> str:
    """What is wrong with a path that cannot be looked at."""
    if os.path.islink(path):
        target = _quoted(os.readlink(path))
        if isinstance(error, FileNotFoundError):
            return f"is a link to {target}, which does not exist"
        return f"is a link to {target}, which cannot be followed ({error.strerror})"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, NotADirectoryError):
        return "cannot be there: a part of it is a file"
    return f"cannot be used: {error.strerror}"


def _demand_native(path: str, name: str) -> None:
    """Libraries that write take UTF-8 alone, whatever the locale."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        what = "has letters that this locale does not know; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        raise _refused(name, path, what) from None


def _demand(path: str, name: str, mode: int, what: str) -> None:
    effective = os.access in os.supports_effective_ids
    if not os.access(path, mode, effective_ids=effective):
        raise _refused(name, path, f"{what} by this user")


def _demand_writable(path: str, folder: str, name: str) -> None:
    """Tries it, for a file system may be read-only or full whatever the modes say.

    On Linux the file has no name at any time.
    """
    try:
        with tempfile.TemporaryFile(dir=os.path.realpath(folder)):
            pass
    except OSError as error:
        raise _refused(
            name, path, f"cannot be written: {_quoted(folder)}: {error.strerror}"
        ) from None
    if os.path.isfile(path):
        _demand(path, name, os.W_OK, "may not be written")


def _refused(name: str, path: str, what: str, hint: str = "") -> UserError:
    return UserError(f"{name} {_quoted(path)} {what}{f'; {hint}' if hint else ''}")


def _quoted(path: str) -> str:
    """On one line, whatever letters it has."""
    return repr(shown(path))
