"""Whether the sub-folders of a data set name classes, and if not, which folder to give instead.

Folders that hold splits (train2017, val_set), images beside their annotations (images, labels) or
one folder alone name no classes.
"""

import collections
import os
import re
from collections.abc import Collection

from mcl_jax import paths
from mcl_jax.data import left_out

_SPLIT = re.compile(
    r"(?:train(?:ing)?(?:[ ._-]?val)?|val(?:id(?:ation)?)?|minival|test(?:ing|s)?|eval(?:uation)?"
    r"|dev(?:elopment)?|pred(?:iction)?|hold[ ._-]?out|(?:un)?labell?ed)"
    r"(?:[ ._-]?(?:sets?|split|data|images?|imgs?|masks?|labels?|full|small|mini|[hl]r|[a-c]|\d+))*",
    re.IGNORECASE,
)
_IMAGES = re.compile(r"(?:jpe?g|png)?[ ._-]?(?:images?|imgs?)", re.IGNORECASE)
_ANNOTATIONS = re.compile(
    r"labels?|masks?|annotations?|annots?|ground[ ._-]?truth|gt|seg(?:mentation)?[ ._-]?(?:masks?|maps?)"
    r"|segmentation[ ._-]?(?:class|object)(?:[ ._-]?aug)?",
    re.IGNORECASE,
)
_NAMED = 4  # folders in a message


def find(root: str, files: list[str]) -> tuple[list[str] | None, str]:
    """(first-level folders that are classes, in the order of their bytes, ''), or (None, why not).

    Folders that are taken for classes although they look like splits are told, once.

    Args:
      root: for messages.
      files: paths relative to it, '/'-separated.
    """
    root_text = paths.shown(root)
    inner = _first_level(files)
    loose = [name for name in files if "/" not in name]
    listed = paths.shown(", ".join([*inner][:_NAMED]) + (", ..." if len(inner) > _NAMED else ""))
    if not inner:
        return None, f"folder {root_text} has no sub-folders, which would name classes"
    if loose:
        return None, (
            f"folder {root_text}: {len(loose)} of {len(files)} images lie beside the sub-folders "
            f"{listed} (the first is {paths.shown(loose[0])}), so these name no classes; "
            "move such images into a sub-folder, or out of the folder"
        )
    if len(inner) == 1:
        give = _to_give(root_text, files)
        return (
            None,
            f"folder {root_text} has one sub-folder, {listed}, and so no classes; give {give}",
        )
    if _are_parts(inner):
        counted = [f"{paths.shown(name)} ({count} images)" for name, count in inner.items()]
        counts = ", ".join(counted[:_NAMED]) + (", ..." if len(counted) > _NAMED else "")
        what = "splits" if len(_splits(inner)) == len(inner) else "kinds of files"
        give = _to_give(root_text, files, " for one of them")
        return None, (
            f"folder {root_text} has the {what} {counts}: all of them are taken as one, without labels; "
            f"give {give}"
        )
    _tell_of_splits(root_text, files, inner)
    return [*inner], ""


def _first_level(files: list[str]) -> dict[str, int]:
    """First-level folder -> how many files lie below it; in the order of the names' bytes."""
    counts = collections.Counter(name.split("/", 1)[0] for name in files if "/" in name)
    return dict(sorted(counts.items(), key=lambda item: os.fsencode(item[0])))


def _splits(inner: Collection[str]) -> list[str]:
    """Those folders that are called as splits, also behind what all names begin with (coco_train)."""
    common = re.match(r".*[ ._-]", os.path.commonprefix([*inner])) if len(inner) > 1 else None
    start = common.end() if common else 0
    return [x for x in inner if _SPLIT.fullmatch(x) or _SPLIT.fullmatch(x[start:])]


def _are_parts(inner: Collection[str]) -> bool:
    """Whether all folders are splits, or kinds of files: images, labels."""
    images = {*_splits(inner), *filter(_IMAGES.fullmatch, inner)}
    return bool(images) and all(name in images or _ANNOTATIONS.fullmatch(name) for name in inner)


def _to_give(folder: str, files: list[str], of: str = "") -> str:
    """The folder below which there are classes, or the images of one split, and what that gives."""
    while inner := _first_level(files):
        if any("/" not in name for name in files) or (len(inner) > 1 and not _are_parts(inner)):
            break
        training = (x for x in _splits(inner) if "train" in x.lower())
        images = (x for x in inner if _IMAGES.fullmatch(x))
        chosen = next(training, None) or next(images, None) or next(iter(inner))
        folder, files = f"{folder}/{paths.shown(chosen)}", _below(files, chosen)
    classes = len(inner) > 1 and all("/" in name for name in files)
    return f"folder:{folder}{of}" + (", with its sub-folders as classes" if classes else "")


def _below(files: list[str], folder: str) -> list[str]:
    """The files of a first-level folder, relative to it."""
    return [name[len(folder) + 1 :] for name in files if name.startswith(f"{folder}/")]


def _tell_of_splits(folder: str, files: list[str], inner: Collection[str]) -> None:
    """What looks like splits among or inside classes is all trained on: not without a word."""
    splits = _splits(inner)
    if len(splits) > 1:
        left_out.tell_once(
            f"folder {folder}: its sub-folders {', '.join(map(paths.shown, splits))} are taken for "
            "classes, since there are others beside them; if they are splits, give "
            f"folder:{folder}/{paths.shown(splits[0])}"
        )
    first = next(iter(inner))
    if not _has_splits_alone(_below(files, first)):  # and so most classes are not looked through
        return
    second = [name.partition("/")[2] for name in files]
    if _has_splits_alone(second):
        below = ", ".join(map(paths.shown, _first_level(second)))
        give = _to_give(f"{folder}/{paths.shown(first)}", _below(files, first))
        left_out.tell_once(
            f"folder {folder}: its sub-folders are taken for classes, and the splits in them "
            f"({below}) as one; if they are no classes, give {give}"
        )


def _has_splits_alone(files: list[str]) -> bool:
    """Whether all files lie in two or more folders that are splits."""
    inner = _first_level(files)
    alone = len(inner) > 1 and all("/" in name for name in files)
    return alone and len(_splits(inner)) == len(inner)
