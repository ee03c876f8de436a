"""What is left out of a user's data: counted by kind, the first of each kind named, told once.

Needs nothing but Python.
"""

import logging
import os
import threading
from collections.abc import Mapping
from typing import NamedTuple

from mcl_jax.paths import shown

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
# What Windows, Synology, QNAP, NetApp, ext4 and Python put beside the user's folders, in small letters.
_SYSTEM = frozenset(
    {"$recycle.bin", "system volume information", "lost+found", "found.000"}
    | {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot", "@tmp"}
    | {"network trash folder", "temporary items", "__pycache__", "lost.dir"}
)
_KINDS_SHOWN = 6

_told: set[str] = set()
_lock = threading.Lock()


class LeftOut(NamedTuple):
    """How many of a kind were left out, and what the first one is called."""

    count: int
    first: str


class Tally:
    """Counts what is left out.

    Attributes:
      kinds: kind -> how many.

    Example:
      >>> tally = Tally()
      >>> tally.add("hidden file", ".a.jpg")
      >>> tally.add("hidden file", ".b.jpg")
      >>> tally.sentence()
      '2 x hidden file (the first is .a.jpg)'
    """

    def __init__(self):
        self.kinds: dict[str, LeftOut] = {}

    def add(self, kind: str, name: str) -> None:
        """One more of a kind; its name is kept if it is the first."""
        count, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = LeftOut(count + 1, first)

    def sentence(self) -> str:
        """All kinds in one line; '' if nothing was left out."""
        return sentence(self.kinds)


def sentence(kinds: Mapping[str, LeftOut]) -> str:
    """The kinds with their counts, the most frequent first."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1].count)
    words = [
        f"{count} x {kind} (the first is {shown(first)})"
        for kind, (count, first) in ordered[:_KINDS_SHOWN]
    ]
    if rest := ordered[_KINDS_SHOWN:]:
        words.append(f"{sum(entry.count for _, entry in rest)} x of {len(rest)} other kinds")
    return ", ".join(words)


def tell(where: str, kinds: Mapping[str, LeftOut]) -> None:
    """One warning about what was left out of `where`; nothing if nothing was."""
    if kinds:
        tell_once(f"{shown(where)}: left out {sentence(kinds)}")


def tell_once(message: str) -> None:
    """A warning that this process gives once, however often the same data are opened."""
    with _lock:
        if message in _told:
            return
        _told.add(message)
    logging.getLogger(__name__).warning("%s", message)


def why_no_image(path: str) -> str | None:
    """The kind of a file that is passed over by its name; None if it is taken for an image.

    What macOS and other systems put beside the user's files are no images, whatever their suffix.

    Args:
      path: in a folder or an archive, '/'-separated.

    Example:
      >>> why_no_image("photos/IMG_1.HEIC"), why_no_image("__MACOSX/a/._b.jpg")
      ('.heic file', 'macOS resource fork')
    """
    if kind := system_file(path):
        return kind
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"{suffix} file" if suffix else "file without suffix"


def system_file(path: str) -> str | None:
    """The kind of what a system put beside the user's files; None for a user's file or folder."""
    # './a.jpg' is how tar names what it packs from the current folder
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if "__MACOSX" in parts or any(part.startswith("._") for part in parts):
        return "macOS resource fork"
    if any(part.startswith(".") for part in parts):
        return "hidden file"
    if any(part.lower() in _SYSTEM for part in parts):
        return "system folder"
    return None
