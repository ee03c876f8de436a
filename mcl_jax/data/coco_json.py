"""COCO's annotation files ('instances'): what is refused, what is left out, what is kept.

One reading for all that take such a file. It needs nothing but Python.

A file that cannot be meant is refused with one line: captions, no categories, two categories of one
name, no boxes. Single images and annotations that no detector could use are left out, counted by
kind, and named in one warning. A missing 'iscrowd' counts as 0. Boxes are clipped to their image.

Lengths in px of the annotated image; a box is (x, y, width, height) from the top left corner.
"""

import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mcl_jax.data import text
from mcl_jax.data.left_out import LeftOut, Tally, tell
from mcl_jax.errors import UserError
from mcl_jax.paths import native, shown

XYWH = tuple[float, float, float, float]
_EXPECTED = "give a file like COCO's instances_train2017.json"


class Image(NamedTuple):
    """One image of the file; height and width in px.

    Example:
      data = open(image.path("train2017"), "rb").read()
    """

    id: Hashable
    file_name: str
    height: int
    width: int

    def path(self, folder: str | os.PathLike) -> str:
        """Of the image's file; `folder` is what the file names are relative to."""
        return os.path.join(folder, native(self.file_name))


class Annotation(NamedTuple):
    """One box.

    Attributes:
      label: index into `Instances.class_names`.
      box: x, y, width, height in px, inside the image and larger than 0.
      crowd: marks a group of objects, which detectors neither learn from nor are judged by.
      entry: the annotation as the file holds it, with its segmentation.
    """

    label: int
    box: XYWH
    crowd: bool
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Instances:
    """What is usable of an annotation file.

    Attributes:
      class_names: in order of the category ids.
      category_ids: of the classes, in the same order.
      images: in the file's order.
      annotations: image id -> its boxes in the file's order; images without boxes have no entry.
      left_out: kind -> how many.
      content: the file as it is, without the images and annotations that are left out.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[Image, ...]
    annotations: Mapping[Hashable, tuple[Annotation, ...]]
    left_out: Mapping[str, LeftOut]
    content: Mapping[str, Any]

    def of(self, image: Image) -> tuple[Annotation, ...]:
        """The boxes of an image."""
        return self.annotations.get(image.id, ())


def read(path: str | Path) -> Instances:
    """Reads an annotation file and warns once about what it leaves out.

    Raises:
      UserError: the file is missing, is no JSON, or is refused by `parse`.

    Example:
      instances = coco_json.read("instances_train2017.json")
      for image in instances.images:
          boxes = [annotation.box for annotation in instances.of(image)]
    """
    content = text.read_json(path, "annotations", _EXPECTED)
    instances = parse(content, shown(path))
    warn(instances, shown(path))
    return instances


def parse(content: Any, name: str) -> Instances:
    """What is usable of a decoded annotation file.

    Args:
      content: what `json.loads` gave.
      name: of the file, for messages.

    Raises:
      UserError: no annotation file of boxes, two categories of one name, or no usable image or box.
    """
    _check_kind(content, name)
    ids, class_names = _categories(content["categories"], name)
    left_out = Tally()
    images: dict[Hashable, Image] = {}
    image_entries = []
    for entry in content["images"]:
        image = _image(entry, images, left_out)
        if image is not None:
            images[image.id] = image
            image_entries.append(entry)
    labels = {category_id: label for label, category_id in enumerate(ids)}
    annotations: dict[Hashable, list[Annotation]] = {}
    for entry in content["annotations"]:
        annotation = _annotation(entry, images, labels=labels, left_out=left_out)
        if annotation is not None:
            annotations.setdefault(entry["image_id"], []).append(annotation)
    if not annotations:
        raise UserError(f"{name} has no usable box: {left_out.sentence() or 'it lists none'}")
    entry_ids = {id(a.entry) for boxes in annotations.values() for a in boxes}
    annotation_entries = [e for e in content["annotations"] if id(e) in entry_ids]
    return Instances(
        class_names=class_names,
        category_ids=ids,
        images=tuple(images.values()),
        annotations={key: tuple(boxes) for key, boxes in annotations.items()},
        left_out=left_out.kinds,
        content=content | {"images": image_entries, "annotations": annotation_entries},
    )


def class_names(content: Any, name: str) -> tuple[str, ...]:
    """The names of the categories of a decoded annotation file, in order of their ids.

    Raises:
      UserError: as `parse`, as far as categories are concerned.
    """
    _check_kind(content, name)
    return _categories(content["categories"], name)[1]


def warn(instances: Instances, name: str) -> None:
    """One warning that names what was left out of the file `name`, if anything was."""
    tell(name, instances.left_out)


def _leave_out(left_out: Tally, kind: str, entry: Any) -> None:
    name = str(entry.get("id", "none"))[:40] if isinstance(entry, Mapping) else "none"
    left_out.add(kind, f"id {name}")


def _check_kind(content: Any, name: str) -> None:
    """UserError for whatever is no file of boxes."""
    lists = ("images", "annotations", "categories")
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
        entries = [e for e in content["annotations"] if isinstance(e, dict)]
        for key, kind in (("caption", "captions"), ("segments_info", "panoptic segments")):
            if entries and all(key in e and "bbox" not in e for e in entries):
                raise UserError(f"{name} holds {kind}, not boxes; {_EXPECTED}")
    missing = [repr(key) for key in lists if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{name} is no annotation file of COCO's: it has no lists {' and '.join(missing)}; "
            f"{_EXPECTED}"
        )
    for key in ("images", "categories"):
        if not content[key]:
            raise UserError(f"{name} lists no {key}")


def _categories(entries: Iterable[Any], name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(ids, names) in order of the ids."""
    names: dict[int, str] = {}
    for entry in entries:
        well_formed = (
            isinstance(entry, dict)
            and isinstance(entry.get("id"), int)
            and isinstance(entry.get("name"), str)
        )
        if not well_formed:
            raise UserError(f"{name}: category {str(entry)[:80]} has no integer id and name")
        if entry["id"] in names:
            raise UserError(f"{name} has two categories of id {entry['id']}")
        if entry["name"] in names.values():
            raise UserError(f"{name} has two categories of the name {entry['name']!r}")
        names[entry["id"]] = entry["name"]
    ids = tuple(sorted(names))
    return ids, tuple(names[i] for i in ids)


def _image(entry: Any, before: Mapping[Hashable, Image], left_out: Tally) -> Image | None:
    """The image of an entry; None, and counted, if it is not usable."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
        return _leave_out(left_out, "image without id", entry)
    if entry["id"] in before:
        return _leave_out(left_out, "image whose id another one has", entry)
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        return _leave_out(left_out, "image without file name", entry)
    sides = [entry.get(side) for side in ("height", "width")]
    if not all(_is_number(side) and side >= 1 for side in sides):
        return _leave_out(left_out, "image without height and width above 0", entry)
    return Image(entry["id"], file_name, height=int(sides[0]), width=int(sides[1]))


def _annotation(
    entry: Any,
    images: Mapping[Hashable, Image],
    labels: Mapping[int, int],
    left_out: Tally,
) -> Annotation | None:
    """The box of an entry; None, and counted, if it is not usable."""
    if not isinstance(entry, dict):
        return _leave_out(left_out, "annotation that is no object", entry)
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not isinstance(image_id, int | str) or image_id not in images:
        return _leave_out(left_out, "annotation of an unknown image", entry)
    if not isinstance(category_id, int) or category_id not in labels:
        return _leave_out(left_out, "annotation of an unknown category", entry)
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return _leave_out(left_out, "annotation without a box of four finite numbers", entry)
    if box[2] <= 0 or box[3] <= 0:
        return _leave_out(left_out, "annotation with a box of width or height 0 or less", entry)
    clipped = _clipped(box, images[image_id])
    if clipped is None:
        return _leave_out(left_out, "annotation with a box outside its image", entry)
    return Annotation(
        labels[category_id], clipped, crowd=bool(entry.get("iscrowd", 0)), entry=entry
    )


def _clipped(box: list[float], image: Image) -> XYWH | None:
    """The part of a box inside its image; None if there is none."""
    x, y, width, height = map(float, box)
    left, right = max(x, 0.0), min(x + width, float(image.width))
    top, bottom = max(y, 0.0), min(y + height, float(image.height))
    if right <= left or bottom <= top:
        return None
    # What needs no clipping stays as it was written, without the rounding of sums.
    inside_x, inside_y = (left, right) == (x, x + width), (top, bottom) == (y, y + height)
    return (left, top, width if inside_x else right - left, height if inside_y else bottom - top)


def _is_number(value: Any) -> bool:
    """Whether a value is a number that can be a length in px: NaN and infinity are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
