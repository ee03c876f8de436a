"""A tree of image files as a data set: order, labels by sub-folder, deterministic slices."""

import dataclasses
import hashlib
import os
import re

from mcl_jax.data.record import Record
from mcl_jax.errors import EmptySplit, UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
)
# First-level folders of these names hold splits, not classes.
_SPLIT_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"}
)
_SLICE = re.compile(r"train(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Images of a folder, read one by one; picklable (holds names only).

    Attributes:
      root: the folder.
      files: paths relative to `root`, '/'-separated.
      labels: one class index per file, -1 where there are no classes.
      class_names: first-level folder names in sorted order, or None without classes.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        name = self.files[index]
        with open(os.path.join(self.root, name), "rb") as file:
            return Record(file.read(), self.labels[index], name)


def open_folder(root: str, split: str) -> FolderSource:
    """Images below `root` with an image suffix, in sorted order of their relative paths.

    Classes: when every image lies in a sub-folder and the first level has two or more of them,
    these name the classes in sorted order; folders named as splits (train, val, ...) do not.

    Args:
      root: the folder; links are followed, hidden files and folders left out.
      split: 'train' (all images) or slices of it, 'train[:90%]', 'train[90%:]', joined by '+'.
        Slices cut an order shuffled by a hash of the relative path, so they are the same on every
        machine and 'train[:90%]' and 'train[90%:]' are disjoint and complete.

    Raises:
      UserError: no such folder, no image in it, or a split that is not understood or empty.
    """
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f"folder {root!r} does not exist; give folder:/path/to/images")
    files = _image_files(root)
    if not files:
        raise UserError(
            f"folder {root!r} holds no image file (looked in every sub-folder for "
            f"{', '.join(IMAGE_SUFFIXES)})"
        )
    chosen = _select(files, split)
    if not chosen:
        raise EmptySplit(
            f"split {split!r} of folder {root!r} is empty: it holds {len(files)} images"
        )
    class_names = _class_names(files)
    labels = _labels(chosen, class_names)
    return FolderSource(root, tuple(chosen), labels=labels, class_names=class_names)


def _image_files(root: str) -> list[str]:
    """Relative paths in sorted order; every real directory is walked once, so link loops end."""
    files, directories = [], set()
    for directory, subdirs, names in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in directories:
            subdirs[:] = []
            continue
        directories.add(real)
        subdirs[:] = sorted(d for d in subdirs if not d.startswith(".") and d != "__MACOSX")
        relative = os.path.relpath(directory, root)
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = name if relative == "." else os.path.join(relative, name)
                files.append(path.replace(os.sep, "/"))
    return sorted(files)


def _class_names(files: list[str]) -> tuple[str, ...] | None:
    if any("/" not in name for name in files):
        return None
    first_level = sorted({name.split("/", 1)[0] for name in files})
    only_splits = all(name.lower() in _SPLIT_NAMES for name in first_level)
    return None if len(first_level) < 2 or only_splits else tuple(first_level)


def _labels(files: list[str], class_names: tuple[str, ...] | None) -> tuple[int, ...]:
    if class_names is None:
        return (-1,) * len(files)
    index = {name: i for i, name in enumerate(class_names)}
    return tuple(index[name.split("/", 1)[0]] for name in files)


def _select(files: list[str], split: str) -> list[str]:
    """The files of `split`, in sorted order, each once."""
    hashed, chosen = None, set()
    for part in split.split("+"):
        match = _SLICE.fullmatch(part.strip())
        if match is None:
            raise UserError(
                f"a folder has no split {part.strip()!r}; use 'train' or a slice such as "
                "'train[:90%]' and 'train[90%:]'"
            )
        if hashed is None:
            hashed = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
        low = _bound(match["low"], len(files), 0)
        high = _bound(match["high"], len(files), len(files))
        chosen.update(hashed[low:high])
    return [name for name in files if name in chosen]


def _bound(text: str | None, count: int, default: int) -> int:
    """An index 0..count from '10', '-10', '10%' or '-10%'."""
    if text is None:
        return default
    position = round(count * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    if text.startswith("-"):
        position += count
    return min(max(position, 0), count)
