"""Which classes an image shows: labels of whole images, several of them for one image.

Shapes: n images, C classes; labels int8 [n, C] of PRESENT, ABSENT and DIFFICULT.

Three kinds of data give them: a folder whose sub-folders are the classes (one label an image), TFDS
data sets with boxes ('objects'), a list of classes or one class, and COCO's annotation files. With
boxes an image shows the classes of its boxes, crowds included. It is DIFFICULT for a class of which
it shows objects marked 'difficult' alone, as in PASCAL VOC's own lists of images.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mcl_jax.data import coco_json
from mcl_jax.data.folder import FolderSource
from mcl_jax.data.record import Source
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.paths import existing_folder, shown
from mcl_jax.report.progress import Bar

PRESENT, ABSENT, DIFFICULT = 1, 0, -1
_CHUNK = 256  # records read at a time for their labels
# One image's (classes that it shows, whether each of them is marked difficult).
Shown = tuple[np.ndarray, np.ndarray]


class LabeledImages(NamedTuple):
    """A split with the labels of its images.

    Attributes:
      name: of data set and split, for messages.
      source: the encoded images.
      labels: int8 [n, C].
      class_names: C of them.
    """

    name: str
    source: Source
    labels: np.ndarray
    class_names: tuple[str, ...]


def open_labeled(
    dataset: str, split: str, data_dir: str | None, *, progress: bool = False
) -> LabeledImages:
    """A split of a data set, with the labels of its images.

    Args:
      dataset, split, data_dir: as `open_source` takes them.
      progress: show a bar while labels are read (whole records of TFDS have to be).

    Raises:
      UserError: as `open_source`, and for data without labels.

    Example:
      voc = open_labeled("tfds:voc/2007", "train+validation", None)
      voc.labels[:, voc.class_names.index("cat")] == PRESENT
    """
    source = open_source(dataset, split, data_dir)
    name = f"split {split!r} of {dataset}"
    if not isinstance(source, FolderSource):
        return _of_tfds(source, name, progress=progress)
    if source.class_names is None:
        raise UserError(
            f"{name} has no labels ({source.unlabeled}): give a folder whose sub-folders are the "
            "classes, or COCO's annotations"
        )
    labels = np.zeros((len(source), len(source.class_names)), np.int8)
    labels[np.arange(len(source)), source.labels] = PRESENT
    return LabeledImages(name, source, labels=labels, class_names=source.class_names)


def open_coco(annotations: str | Path, images: str | Path) -> LabeledImages:
    """The images of an annotation file of COCO's form, with the classes of their boxes.

    'difficult' or 'ignore' above 0 marks an annotation as difficult, as converters from VOC write it.

    Args:
      annotations: the JSON file.
      images: folder that its file names are relative to.

    Raises:
      UserError: as `coco_json.read`; for a folder that is not there or holds none of the images.
    """
    instances = coco_json.read(annotations)
    hint = f"give the folder of the images of {shown(annotations)}"
    folder = existing_folder(images, "image folder", hint)
    files = tuple(image.file_name for image in instances.images)
    if not any(os.path.isfile(image.path(folder)) for image in instances.images):
        raise UserError(
            f"{shown(folder)} holds no image of {shown(annotations)}, e.g. {shown(files[0])}"
        )
    source = FolderSource(folder, files, labels=(-1,) * len(files), class_names=None)

    def classes_of(image: coco_json.Image) -> Shown:
        boxes = instances.of(image)
        hard = [bool(box.entry.get("difficult") or box.entry.get("ignore")) for box in boxes]
        return np.array([box.label for box in boxes], int), np.array(hard, bool)

    labels = _matrix(map(classes_of, instances.images), len(files), len(instances.class_names))
    return LabeledImages(
        shown(annotations), source, labels=labels, class_names=instances.class_names
    )


def _matrix(images: Iterable[Shown], count: int, classes: int) -> np.ndarray:
    """int8 [n, C]; an object that is not difficult decides."""
    labels = np.full((count, classes), ABSENT, np.int8)
    for row, (present, difficult) in zip(labels, images, strict=True):
        row[present[difficult]] = DIFFICULT
        row[present[~difficult]] = PRESENT
    return labels


def _of_tfds(source: Any, name: str, *, progress: bool) -> LabeledImages:
    class_label, reader = _reader(source.features, name)
    starts = range(0, len(source), _CHUNK)
    bar = Bar(starts, f"labels of {name}", unit_scale=_CHUNK, unit="image", disable=not progress)
    labels = (
        reader(example)
        for start in bar
        for example in source.examples(range(start, min(start + _CHUNK, len(source))))
    )
    names = tuple(class_label.names)
    return LabeledImages(
        name, source, labels=_matrix(labels, len(source), len(names)), class_names=names
    )


def _reader(features: Mapping[str, Any], name: str) -> tuple[Any, Callable[[Mapping], Shown]]:
    """The class label that a data set has, and what reads it of an example."""
    if _has_boxes(features):
        inner = features["objects"].feature
        return inner["label"], partial(_of_objects, has_difficult="is_difficult" in inner)
    kind, sequence = tfds.features.ClassLabel, tfds.features.Sequence
    lists = {k: x.feature for k, x in features.items() if isinstance(x, sequence)}
    lists = {k: x for k, x in lists.items() if isinstance(x, kind)}
    singles = {k: x for k, x in features.items() if isinstance(x, kind)}
    for kind_features, preferred in ((lists, "labels"), (singles, "label")):
        only = next(iter(kind_features)) if len(kind_features) == 1 else None
        key = preferred if preferred in kind_features else only
        if key is not None:
            return kind_features[key], partial(_of_labels, key=key)
    raise UserError(f"{name} has no labels: neither objects, nor labels, nor a label")


def _has_boxes(features: Mapping[str, Any]) -> bool:
    if "objects" not in features or not isinstance(features["objects"], tfds.features.Sequence):
        return False
    inner = features["objects"].feature
    return isinstance(inner, tfds.features.FeaturesDict) and "label" in inner


def _of_objects(example: Mapping[str, Any], *, has_difficult: bool) -> Shown:
    objects = example["objects"]
    labels = np.asarray(objects["label"], int)
    difficult = objects["is_difficult"] if has_difficult else np.zeros(len(labels))
    return labels, np.asarray(difficult, bool)


def _of_labels(example: Mapping[str, Any], key: str) -> Shown:
    labels = np.atleast_1d(np.asarray(example[key], int))
    return labels, np.zeros(len(labels), bool)
