"""Encoded images with boxes: COCO JSON, TFDS data sets in ArrayRecord form, the built-in scenes.

Shapes: k boxes of one image; boxes are float32 [k, 4] (ymin, xmin, ymax, xmax) as shares of the
image's height and width.
"""

import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds

from mcl_jax.data import coco_json
from mcl_jax.data.scenes.builder import prepare_scenes
from mcl_jax.data.sources import TfdsSource, tfds_directory
from mcl_jax.errors import UserError
from mcl_jax.paths import existing_folder, shown

# TFDS's names of the mark for objects that detectors neither learn from nor are judged by.
_IGNORED = ("is_crowd", "is_difficult")


class BoxedRecord(NamedTuple):
    """One encoded image with its boxes.

    Attributes:
      data: the encoded bytes as stored.
      boxes: float32 [k, 4], shares of height and width.
      labels: int32 [k].
      ignored: bool [k], COCO's crowds and VOC's difficult objects.
      name: what a message can call the image.
    """

    data: bytes
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    name: str


class BoxedSource(Protocol):
    """Random access to encoded images with boxes. `[i]` raises OSError for a missing file."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> BoxedRecord: ...


class CocoSource:
    """Images of an annotation file (`coco_json.read`), in the file's order."""

    def __init__(self, annotations: str | Path, folder: str | Path):
        """Opens the file `annotations`, whose file names are relative to `folder`.

        Raises:
          UserError: as `coco_json.read`; the folder or the first image is not there.
        """
        self._instances = coco_json.read(annotations)
        self._folder = existing_folder(folder, "image folder")
        self.class_names = self._instances.class_names
        path = self._instances.images[0].path(self._folder)
        if not os.path.isfile(path):
            moved = os.path.isfile(os.path.join(self._folder, os.path.basename(path)))
            hint = (
                "give the folder above it" if moved else "give the folder that file names start in"
            )
            name = shown(self._instances.images[0].file_name)
            raise UserError(
                f"{shown(self._folder)} lacks {name}, the first image of {shown(annotations)}; {hint}"
            )

    def __len__(self) -> int:
        return len(self._instances.images)

    def __getitem__(self, index: int) -> BoxedRecord:
        image = self._instances.images[index]
        annotations = self._instances.of(image)
        with open(image.path(self._folder), "rb") as file:
            data = file.read()
        return BoxedRecord(
            data,
            relative_boxes([a.box for a in annotations], image.height, image.width),
            labels=np.array([a.label for a in annotations], np.int32),
            ignored=np.array([a.crowd for a in annotations], bool),
            name=shown(image.file_name),
        )


def relative_boxes(boxes: list[coco_json.XYWH], height: int, width: int) -> np.ndarray:
    """COCO's (x, y, width, height) in px -> float32 [k, 4] shares, as TFDS holds them."""
    x, y, w, h = np.array(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([y / height, x / width, (y + h) / height, (x + w) / width], -1)
    return np.clip(corners, 0.0, 1.0).astype(np.float32)


class TfdsBoxes:
    """Images of one split of a TFDS data set with a feature 'objects' (bbox, label)."""

    def __init__(self, directory: str, split: str):
        """Opens a split; UserError as `TfdsSource` says, or if the data set holds no boxes."""
        self._source = TfdsSource(directory, split)
        features = self._source.features
        objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
        kinds = {"bbox": tfds.features.BBoxFeature, "label": tfds.features.ClassLabel}
        for name, kind in kinds.items():
            if name not in objects or not isinstance(objects[name], kind):
                raise UserError(
                    f"{directory} has no boxes: no feature 'objects' with 'bbox' and 'label', "
                    f"as coco/2017 and voc/2007 have, but {', '.join(features)}"
                )
        self.class_names = tuple(objects["label"].names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> BoxedRecord:
        example = self._source.example(index)
        objects = example["objects"]
        labels = np.asarray(objects["label"], np.int32).reshape(-1)
        ignored = np.zeros(len(labels), bool)
        for name in _IGNORED:
            if name in objects:
                ignored |= np.asarray(objects[name], bool).reshape(-1)
        record = self._source.record(example, index)
        boxes = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
        return BoxedRecord(record.data, boxes, labels=labels, ignored=ignored, name=record.name)


def open_boxes(dataset: str, split: str, data_dir: str | None) -> BoxedSource:
    """A TFDS data set with boxes.

    Args:
      dataset: 'scenes' or 'tfds:NAME[/CONFIG][:VERSION]'.
      split: in TFDS syntax.
      data_dir: as `data.sources.open_source` takes it.

    Raises:
      UserError: unknown kind of data set, not prepared, or without boxes.
    """
    if dataset == "scenes":
        return TfdsBoxes(os.fspath(prepare_scenes(data_dir)), split)
    kind, _, name = dataset.partition(":")
    if kind == "tfds" and name:
        return TfdsBoxes(tfds_directory(name, data_dir), split)
    raise UserError(
        f"unknown data set with boxes {dataset!r}; use 'scenes', 'tfds:coco/2017', "
        "'tfds:voc/2007', or a COCO JSON with its folder of images"
    )
