"""Which format a file of weights has: its content says so, not its name.

Nothing in a file is executed. Needs numpy alone, and torch or safetensors for their own files.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import zipfile
from pathlib import Path
from typing import Any

from mcl_jax.convert.files import formats
from mcl_jax.convert.files.refusals import few
from mcl_jax.errors import UserError
from mcl_jax.paths import existing_file

READERS = {
    "torch": formats.load_torch,
    "npz": formats.load_npz,
    "pickle": formats.load_pickle,
    "safetensors": formats.load_safetensors,
}
SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".pkl", ".safetensors", ".npz")

# How torch's files begin from before torch 1.6: a pickle of its magic number.
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
TAR, TAR_AT = b"ustar", 257
LONGEST_HEADER = 1 << 32  # bytes; a safetensors file begins with how long its header is

UNPACK = "{} archive: unpack it and give the file of weights in it"
FETCH = "fetch it again, from the link to the file itself"
# Start of a file -> what it is, and what would do.
STRANGERS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights: run `git lfs pull` there",
    b"\x89HDF\r\n\x1a\n": "HDF5, as Keras writes it: give weights of PyTorch",
    b"\x93NUMPY": "one array (.npy): give an .npz of arrays under their names",
    b"GGUF": "GGUF, a format of language models: give weights of a ResNet or Swin",
    b"%PDF": "a PDF, not weights: " + FETCH,
    b"\x1f\x8b": "a " + UNPACK.format("gzip"),
    b"BZh": "a " + UNPACK.format("bzip2"),
    b"\xfd7zXZ\x00": "an " + UNPACK.format("xz"),
    b"\x28\xb5\x2f\xfd": "a " + UNPACK.format("zstd"),
    b"7z\xbc\xaf\x27\x1c": "a " + UNPACK.format("7z"),
    b"Rar!": "a " + UNPACK.format("rar"),
}


def load(path: Path) -> Any:
    """What a file holds: nested containers of arrays or tensors, and whatever else there is.

    Raises:
      UserError: in one line, for a file that is missing, damaged, of another format, or that names
        anything but arrays and plain containers.

    Example:
      tree = content.load(Path("checkpoint_0199.pth.tar"))
    """
    return READERS[format_of(path)](path)


def format_of(path: Path) -> str:
    """One of READERS.

    Raises:
      UserError: says what a file is that is none of them.
    """
    demand_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise UserError(f"{path} is empty, as after a download that did not start: fetch it again")
    for magic, words in STRANGERS.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {words}")
    if start.startswith(b"PK"):
        return _format_of_zip(path)
    if start.startswith(OLD_TORCH):
        return "torch"
    if start.startswith(PICKLE):
        return "pickle"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < LONGEST_HEADER:
        return "safetensors"
    if start[TAR_AT:].startswith(TAR):
        raise UserError(f"{path} is a {UNPACK.format('tar')}")
    if words := _text(start):
        raise UserError(f"{path} is {words}, not weights: {FETCH}")
    return _oldest_pickle(path, start)


def demand_file(path: Path) -> None:
    """UserError unless there is a file, not a folder or a device."""
    existing_file(path, "weights", f"give a file of weights ({', '.join(SUFFIXES)})")


def _format_of_zip(path: Path) -> str:
    """torch's and numpy's files are both zips."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise UserError(
            f"{_unreadable(path)}: it is a zip without its table of contents, as after a download "
            "that was cut; fetch it again"
        ) from error
    leaves = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in leaves:
        if "constants.pkl" in leaves:
            raise UserError(
                f"{path} is a TorchScript archive: load it with torch.jit.load, and save its "
                "state_dict() with torch.save"
            )
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise UserError(f"{path} is a {UNPACK.format('zip')} ({few(names) or 'it is empty'})")


def _text(start: bytes) -> str | None:
    """What kind of text a file begins as; None where it is none that is met in this place."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")):
        return "a web page (HTML)"
    if text.startswith(b"<?xml"):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "text (JSON)"
    return None


def _oldest_pickle(path: Path, start: bytes) -> str:
    """Pickles of protocol 0 and 1 have no sign at their start: they are read, or they are none."""
    try:
        formats.load_pickle(path)
    except UserError as error:
        if error.__cause__ is None or isinstance(error.__cause__, UserError):
            raise  # a pickle that names what it must not
        raise UserError(
            f"{_unreadable(path)}: no format of weights begins with {start[:12]!r}"
        ) from error
    return "pickle"


def _unreadable(path: Path) -> str:
    """That a file is not what its name says."""
    if path.suffix in (".npz", ".safetensors"):
        return f"{path} is not a readable {path.suffix}"
    if path.suffix == ".pkl":
        return f"{path} is not a readable pickle"
    return f"{path} cannot be read with torch.load(weights_only=True)"
