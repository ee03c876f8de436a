"""Zips and tars as they are found: what systems add is left out, what is damaged is told in one line."""

import contextlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from mcl_jax.data.left_out import Tally, system_file, why_no_image
from mcl_jax.errors import UserError
from mcl_jax.paths import shown

_GZIP = b"\x1f\x8b"
_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a method of compression that Python's zipfile does not know
    RuntimeError,  # zipfile's for what is encrypted
    UnicodeError,  # zipfile's for names
    OSError,
)


@contextlib.contextmanager
def errors_named(path: str) -> Iterator[None]:
    """Whatever is wrong with an archive that is read inside becomes a UserError that names it."""
    try:
        yield
    except _DAMAGES as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{shown(path)!r} is damaged, cut short or no such archive: {reason}"
        ) from error


@contextlib.contextmanager
def open_tar(path: str, hint: str) -> Iterator[tarfile.TarFile]:
    """An uncompressed tar.

    Raises:
      UserError: it is none, or damaged; the message ends with `hint` if it is compressed.
    """
    with errors_named(path):
        with open(path, "rb") as file:
            compressed = file.read(2) == _GZIP
        if compressed:
            raise UserError(f"{shown(path)!r} is a compressed tar (.tar.gz); {hint}")
        with tarfile.open(path, "r:") as tar:
            yield tar


@contextlib.contextmanager
def open_zip(path: str) -> Iterator[zipfile.ZipFile]:
    """A zip; UserError if it is none, or damaged."""
    with errors_named(path), zipfile.ZipFile(path) as archive:
        yield archive


def tar_files(
    tar: tarfile.TarFile, others: Tally, *, images: bool = True
) -> Iterator[tarfile.TarInfo]:
    """The user's files in a tar, in its order.

    Args:
      others: counts what is left out.
      images: leave out what has no image's suffix too.
    """
    why_not = why_no_image if images else system_file
    for member in tar:
        if member.isdir():
            continue
        if kind := why_not(member.name) or (None if member.isfile() else "link or device"):
            others.add(kind, member.name)
        else:
            yield member


def zip_images(archive: zipfile.ZipFile, others: Tally) -> list[str]:
    """Names of the image files in a zip, in its order; counts what is left out."""
    images = []
    for name in archive.namelist():
        if name.endswith("/"):
            continue
        if kind := why_no_image(name):
            others.add(kind, name)
        else:
            images.append(name)
    return images


def base_name(member: str) -> str:
    """A member's name without folders, as text that every file takes."""
    return shown(os.path.basename(member))
