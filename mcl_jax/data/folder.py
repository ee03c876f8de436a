"""A tree of image files as a data set: order, labels by sub-folder, deterministic slices.

Names of files are bytes: they are kept as the system gives them, sorted and hashed as bytes, so that
order and slices are the same in every locale, and shown with replacement characters.
"""

import dataclasses
import functools
import hashlib
import os
import re

from mcl_jax import paths
from mcl_jax.data import class_folders, left_out
from mcl_jax.data.record import Record
from mcl_jax.data.tree import list_images
from mcl_jax.errors import EmptySplit, UserError

_SLICE = re.compile(r"train(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")
# Asking a network file system for more sizes than this takes minutes.
_SIZES = 10_000


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Images of a folder, read one by one; picklable (holds names only).

    Attributes:
      root: the folder.
      files: paths relative to `root`, '/'-separated.
      labels: one class index per file, -1 where there are no classes.
      class_names: first-level folder names in sorted order, or None without classes.
      unlabeled: why there are no classes, and what to give instead; '' with classes.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...] | None
    unlabeled: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        name = self.files[index]
        with open(os.path.join(self.root, paths.native(name)), "rb") as file:
            return Record(file.read(), self.labels[index], paths.shown(name))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the names, and of the sizes of up to 10,000 files spread over them."""
        digest = hashlib.sha256()
        step = -(-len(self.files) // _SIZES)
        for position, name in enumerate(self.files):
            size = self.size_of(name) if position % step == 0 else ""
            digest.update(_bytes(name) + f"\0{size}\0".encode())
        return digest.hexdigest()

    def size_of(self, name: str) -> int:
        """Bytes of one of `files`; 0 if it is gone."""
        try:
            return os.path.getsize(os.path.join(self.root, paths.native(name)))
        except OSError:
            return 0


def open_folder(root: str, split: str) -> FolderSource:
    """Images below `root` with an image suffix, in sorted order of their relative paths.

    Classes: when every image lies in a sub-folder and the first level has two or more of them,
    these name the classes in sorted order; folders named as splits (train, val2017, ...) or as kinds
    of files (images, labels) do not. What is left out, and why folders name no classes, is told once.

    Args:
      root: the folder; links are followed. Hidden files and folders are left out, and so are those
        that a system made (@eaDir, lost+found) and outputs of this project, whose pictures are no data.
      split: 'train' (all images) or slices of it, 'train[:90%]', 'train[90%:]', joined by '+'.
        Slices cut an order shuffled by a hash of the relative path, so they are the same on every
        machine and 'train[:90%]' and 'train[90%:]' are disjoint and complete.

    Raises:
      UserError: no such folder, no image in it, or a split that is not understood or empty.
    """
    root = paths.existing_folder(root, "folder", "give folder:/path/to/images")
    files, others = list_images(root)
    if not files:
        counted = f"; left out {others.sentence()}" if others.kinds else ""
        raise UserError(
            f"folder {paths.shown(root)!r} holds no image file (looked in every sub-folder for "
            f"{', '.join(left_out.IMAGE_SUFFIXES)}){counted}"
        )
    chosen = _select(files, split)
    if not chosen:
        raise EmptySplit(
            f"split {split!r} of folder {paths.shown(root)!r} is empty: it holds {len(files)} images"
        )
    left_out.tell(f"folder {root}", others.kinds)
    folders, reason = class_folders.find(root, files)
    if reason and any("/" in name for name in files):
        left_out.tell_once(reason)
    labels = _labels(chosen, folders)
    return FolderSource(
        root,
        tuple(chosen),
        labels=labels,
        class_names=_class_names(folders),
        unlabeled=reason,
    )


def demand_apart(dataset: str, workdir: str | os.PathLike) -> None:
    """Refuses a run in the very folder of its images: its pictures would become images.

    A run's folder below that of the images is left out by `open_folder`.

    Raises:
      UserError: if both are one folder.
    """
    kind, _, root = dataset.partition(":")
    if kind != "folder" or paths.is_bucket(workdir):
        return
    root = os.path.expanduser(root)
    if os.path.isdir(root) and os.path.isdir(workdir) and os.path.samefile(root, workdir):
        raise UserError(
            f"workdir {paths.shown(workdir)!r} is the folder of the images: the run's pictures would "
            "become images; give another one"
        )


def _class_names(folders: list[str] | None) -> tuple[str, ...] | None:
    """What the classes are called: each has a name of its own, also where bytes are no UTF-8."""
    if folders is None:
        return None
    names = tuple(map(paths.shown, folders))
    if len(set(names)) < len(names):
        return tuple(_bytes(name).decode("utf-8", "backslashreplace") for name in folders)
    return names


def _bytes(name: str) -> bytes:
    """A name as it is on the disk; its order and hash do not depend on the locale."""
    return os.fsencode(name)


def _labels(files: list[str], folders: list[str] | None) -> tuple[int, ...]:
    if folders is None:
        return (-1,) * len(files)
    index = {name: i for i, name in enumerate(folders)}
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
            hashed = sorted(files, key=lambda name: hashlib.sha256(_bytes(name)).digest())
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
