"""Labeled scenes as arrays: what the detection probe trains and tests on.

Shapes: n images, H their side in px, N boxes of an image (padded); boxes are float [4]
(ymin, xmin, ymax, xmax) in px.
"""

import dataclasses
import functools

import numpy as np
import tensorflow_datasets as tfds

from mcl_jax.data.decode import decode_to_canvas
from mcl_jax.data.scenes.builder import prepare_scenes
from mcl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BoxedImages:
    """Images uint8 [n, H, H, 3] (zeros below and right of the image), their valid (height, width)
    int32 [n, 2], boxes float32 [n, N, 4] in px, and labels int32 [n, N], -1 for padding."""

    images: np.ndarray
    extents: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def load_scenes(data_dir: str | None, split: str, count: int, image_size: int) -> BoxedImages:
    """The first `count` scenes of a split, read once per process.

    Args:
      data_dir: as `prepare_scenes` takes it; the scenes are rendered if they are not there.
      split: 'train' or 'validation'.
      image_size: H in px.

    Raises:
      UserError: the split has fewer scenes.
    """
    builder = tfds.builder_from_directory(str(prepare_scenes(data_dir or None)))
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    if count > len(source):
        raise UserError(f"{count} scenes are asked for, split {split!r} has {len(source)}")
    examples = [source[i] for i in range(count)]
    longest = max(len(e["objects"]["label"]) for e in examples)
    images = np.zeros((count, image_size, image_size, 3), np.uint8)
    extents = np.zeros((count, 2), np.int32)
    boxes = np.zeros((count, longest, 4), np.float32)
    labels = np.full((count, longest), -1, np.int32)
    for i, example in enumerate(examples):
        _, extents[i] = decode_to_canvas(bytes(example["image"]), image_size, out=images[i])
        found = len(example["objects"]["label"])
        boxes[i, :found] = np.asarray(example["objects"]["bbox"]) * np.tile(extents[i], 2)
        labels[i, :found] = example["objects"]["label"]
    names = builder.info.features["objects"]["label"].names
    return BoxedImages(images, extents, boxes, labels, tuple(names))


def with_mirrored(data: BoxedImages) -> BoxedImages:
    """The images followed by their mirror images (left and right swapped within the extent)."""
    images, boxes = data.images.copy(), data.boxes.copy()
    for image, (height, width) in zip(images, data.extents, strict=True):
        image[:height, :width] = image[:height, :width][:, ::-1]
    width = data.extents[:, None, 1]
    boxes[..., 1], boxes[..., 3] = width - data.boxes[..., 3], width - data.boxes[..., 1]
    twice = {
        "images": np.concatenate([data.images, images]),
        "extents": np.tile(data.extents, (2, 1)),
        "boxes": np.concatenate([data.boxes, boxes]),
        "labels": np.tile(data.labels, (2, 1)),
    }
    return dataclasses.replace(data, **twice)
