"""How a path is read, written whole, created, listed and removed: on a disk or in a bucket.

A path is a `pathlib.Path`, or an `etils.epath.Path` for gs://BUCKET/NAME. Both can be joined with
`/` and have `name` and `parent`; for everything else use the functions here (and `growing_log.py`
for what grows). Nothing else asks which kind a path is. Every function raises OSError if the disk
or the bucket fails. None of them is called in the training loop's steps.
"""

import base64
import contextlib
import fnmatch
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

from mcl_jax import whole_file
from mcl_jax.errors import UserError, one_line
from mcl_jax.runtime import bucket
from mcl_jax.whole_file import Content

if TYPE_CHECKING:  # only a bucket needs it, and not every environment has it
    from etils import epath

Place: TypeAlias = Union[Path, "epath.Path"]


def locate(path: str | os.PathLike) -> Place:
    """What a user calls a folder or file, as a path that the functions here take.

    Example:
      locate("gs://bucket/run") / "card.html"  # an epath.Path

    Raises:
      UserError: for a URL that is no gs:// one, and without gcsfs for one that is.
    """
    text = os.fspath(path)
    # pathlib makes gs:/bucket of gs://bucket
    match = re.match(r"([A-Za-z][A-Za-z0-9+]*)://?(?=[^/])", text)
    if match is None or (match[1] != "gs" and not text.startswith(f"{match[1]}://")):
        return Path(text)  # never an epath: it takes /gs/folder for a bucket (etils issue 734)
    if match[1] != "gs":
        raise UserError(f"{text}: only folders and gs://BUCKET/NAME can be used")
    bucket.demand_client()
    from etils import epath

    return epath.Path(f"gs://{text[match.end() :]}")


def absolute(path: str | os.PathLike) -> Place:
    """`locate`, independent of the current folder."""
    place = locate(path)
    return place.absolute() if isinstance(place, Path) else place


def reachable(place: Place) -> None:
    """UserError with what to do, unless a bucket is there and may be read; one request."""
    if isinstance(place, Path):
        return
    name = place.parts[2]
    try:
        with bucket.client(place) as files:
            files.call("GET", "b/{}/o", name, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise UserError(f"{place}: there is no bucket {name!r}") from None
    except OSError as error:
        raise UserError(
            f"{place}: the bucket cannot be read ({one_line(error)}); for credentials run `gcloud auth "
            "application-default login`, or give this machine's account access to it"
        ) from error


def read(place: Place) -> bytes:
    """The whole content."""
    if isinstance(place, Path):
        return place.read_bytes()
    with bucket.client(place) as files:
        return files.cat_file(str(place))


def write(place: Place, content: Content) -> None:
    """Writes a file that is there wholly or not at all, whenever the process is killed.

    Args:
      place: of the file; its folder exists.
      content: bytes, text (UTF-8), or a function that is given the open binary file.
    """
    if isinstance(place, Path):
        whole_file.write(place, content)
        return
    with bucket.client(place) as files:  # an object appears when all of it is there
        files.pipe_file(str(place), _bytes(content))


def write_result(place: Place, content: Content) -> None:
    """`write` of what a run is for; CannotSave if the disk or bucket fails."""
    with whole_file.saving(place, OSError):
        write(place, content)


def local(place: Place) -> Path | None:
    """As a path for libraries that write to disks alone; None: it is in a bucket."""
    return place if isinstance(place, Path) else None


@contextlib.contextmanager
def filled(folder: Place) -> Iterator[Path]:
    """A folder for such libraries: what they leave there is in `folder` when the context ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            adopt(file, folder / str(file.relative_to(scratch)))


def adopt(file: Path, place: Place) -> None:
    """Moves a finished file of this machine to its place."""
    if isinstance(place, Path):
        file.replace(place)
    else:
        write(place, file.read_bytes())
        file.unlink()


def create(place: Place, content: bytes) -> None:
    """Writes a new file; FileExistsError if there is one, also if it appears at the same moment."""
    if isinstance(place, Path):
        with place.open("xb") as file:  # O_EXCL: also on NFS
            file.write(content)
        return
    with bucket.client(place) as files:
        files.pipe_file(str(place), content, mode="create")


def exists(place: Place) -> bool:
    """Whether there is a file or folder; on a bucket, a folder is there once it holds something."""
    if isinstance(place, Path):
        return place.exists()
    with bucket.client(place) as files:
        return files.exists(str(place))


def is_file(place: Place) -> bool:
    """Whether there is a file of that name, and no folder."""
    if isinstance(place, Path):
        return place.exists() and not place.is_dir()
    with bucket.client(place) as files:
        return files.isfile(str(place))


def names(folder: Place) -> list[str]:
    """What is in a folder, sorted; nothing if it is not there."""
    if isinstance(folder, Path):
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    try:
        with bucket.client(folder) as files:
            entries = files.ls(str(folder), detail=False)
    except FileNotFoundError:
        return []
    inside = f"{str(folder).removeprefix('gs://').rstrip('/')}/"
    return sorted(path[len(inside) :].rstrip("/") for path in entries if len(path) > len(inside))


def matching(folder: Place, pattern: str) -> list[Place]:
    """Paths below a folder that fit FOLDER/*.SUFFIX or a name, sorted; logs in parts count as one."""
    head, _, name = pattern.rpartition("/")
    inside = folder / head if head else folder
    plain_names = {re.sub(r"\.\d{4,}-\d{6,}$", "", each) for each in names(inside)}
    return [inside / each for each in sorted(plain_names) if fnmatch.fnmatch(each, name)]


def make_folder(place: Place) -> None:
    """With its parents; a bucket needs no folders."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def remove(place: Place) -> None:
    """Removes a file, or a folder with all that is in it; nothing happens if it is not there."""
    if not isinstance(place, Path):
        with contextlib.suppress(FileNotFoundError), bucket.client(place) as files:
            files.rm(str(place), recursive=True)
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def remove_empty(folder: Place) -> None:
    """Removes a folder; OSError if something is in it. A bucket has no empty folders."""
    if isinstance(folder, Path):
        folder.rmdir()


def free(place: Place) -> int | None:
    """Bytes that still fit; None: no limit."""
    return shutil.disk_usage(place).free if isinstance(place, Path) else None


def renames(place: Place) -> bool:
    """Whether a folder gets another name at once. Elsewhere that copies every byte, so there a
    folder is finished by a last object, and set aside by a marker."""
    return isinstance(place, Path)


class Stat(NamedTuple):
    """A file's size in bytes, and the digest that the bucket knows of it ('md5:HEX'; '' on disks)."""

    size: int
    digest: str


def stats(folder: Place) -> dict[str, Stat]:
    """Of every file below a folder, by its name relative to that; of a bucket with one listing."""
    if isinstance(folder, Path):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)): Stat(p.stat().st_size, "") for p in paths}
    inside = f"{str(folder).removeprefix('gs://')}/"
    with bucket.client(folder) as files:
        entries = files.find(str(folder), detail=True)
    return {
        path.removeprefix(inside): Stat(int(info["size"]), _md5(info))
        for path, info in sorted(entries.items())
    }


def digest(place: Place, like: str = "") -> str:
    """The digest of one file, which is read for it: MD5 if another one is `like` that, or SHA-256."""
    kind = "md5" if like.startswith("md5:") else "sha256"
    if isinstance(place, Path):
        with place.open("rb") as file:
            digits = hashlib.file_digest(file, kind).hexdigest()
    else:
        digits = hashlib.new(kind, read(place), usedforsecurity=False).hexdigest()
    return f"md5:{digits}" if kind == "md5" else digits


def _md5(info: dict[str, Any]) -> str:
    base64_text = info.get("md5Hash", "")  # objects composed of others have none
    return f"md5:{base64.b64decode(base64_text).hex()}" if base64_text else ""


def _bytes(content: Content) -> bytes | memoryview:
    if callable(content):
        content(buffer := io.BytesIO())
        return buffer.getvalue()
    return content.encode() if isinstance(content, str) else content
