"""The image files below a folder, and what lies there beside them."""

import os

from mcl_jax.data.left_out import Tally, system_file, why_no_image

# What the output folders of pretrain, probe, finetune_torchvision and visualize hold.
OUTPUT_SIGNS = (
    *({"config.json", "checkpoints"}, {"config.json", "owner"}),
    *({"result.json", "boxes.png"}, {"result.json", "test_images.png"}),
    {"features.png", "retrieval.png", "activation.png"},
)


def list_images(root: str) -> tuple[list[str], Tally]:
    """Image files below a folder by their names, and what is left out.

    Links are followed; every real folder is looked into once, so loops of links end. Nothing is
    opened: pipes and sockets with an image's name would never end.

    Returns:
      Paths relative to `root`, '/'-separated, in the order of their bytes; and the rest, counted.
    """
    images, others, visits = [], Tally(), set()
    folders = [(root, "")]
    while folders:
        folder, path = folders.pop()
        inner, entries = [], _entries(folder, path, others, visits)
        if path and _is_output({entry.name for entry in entries}):
            others.add("output folder of mcl-jax", path)
            continue
        for entry in entries:
            name = f"{path}/{entry.name}" if path else entry.name
            if _is_folder(entry):
                if kind := system_file(entry.name):
                    others.add(kind.replace("file", "folder"), name)
                else:
                    inner.append((entry.path, name))
            elif kind := why_no_image(entry.name) or _why_no_file(entry):
                others.add(kind, name)
            else:
                images.append(name)
        folders += reversed(inner)
    return sorted(images, key=os.fsencode), others


def _is_output(names: set[str]) -> bool:
    """Whether a folder with these names inside is an output of ours, whose pictures are no images."""
    return any(signs <= names for signs in OUTPUT_SIGNS)


def _entries(
    folder: str, path: str, others: Tally, visits: set[tuple[int, int]]
) -> list[os.DirEntry]:
    """What is in a folder, in the order of the names' bytes; nothing if it was seen before."""
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in visits:
            return []
        visits.add(identity)
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        others.add("folder that cannot be read", path)
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _why_no_file(entry: os.DirEntry) -> str | None:
    """The kind of what has an image's name, but cannot be read as a file."""
    try:
        if entry.is_file():
            return None
    except OSError:
        pass
    return "broken link" if entry.is_symlink() else "pipe, socket or device"
