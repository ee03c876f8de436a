"""Annotated images from disk: the label budget, and what torchvision's detectors take.

Shapes: image float32 [3, H, W], RGB in [0, 1]; N objects of an image; boxes float32 [N, 4]
(xmin, ymin, xmax, ymax) in px; labels int64 [N] from 1; masks uint8 [N, H, W].
"""

import io
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from mcl_jax.data import coco_json
from mcl_jax.data.coco_json import Annotation, Instances
from mcl_jax.data.decode import DecodeError, decode_whole
from mcl_jax.errors import UserError
from mcl_jax.finetune import schedule
from mcl_jax.finetune.settings import FinetuneSettings
from mcl_jax.paths import existing_folder, shown

_ORIENTATION = 0x0112  # EXIF's tag


@dataclass(frozen=True)
class Annotated:
    """An annotation file with the folder of its images."""

    json: Path
    folder: Path
    instances: Instances


def read(json: Path, folder: Path) -> Annotated:
    """Reads an annotation file and looks whether its images are there.

    Raises:
      UserError: the file is refused by `coco_json.read`, or an image is missing.
    """
    instances = coco_json.read(json)
    hint = f"give that of the images of {shown(json)}"
    folder = Path(existing_folder(folder, "image folder", hint))
    missing = [x.file_name for x in instances.images if not os.path.isfile(x.path(folder))]
    if missing:
        raise UserError(
            f"{shown(folder)} lacks {len(missing)} of {len(instances.images)} images of "
            f"{shown(json)}, first {shown(missing[0])}"
        )
    return Annotated(json, folder, instances)


def objects(instances: Instances, image: coco_json.Image) -> tuple[Annotation, ...]:
    """What a detector learns of an image: all but crowds."""
    return tuple(x for x in instances.of(image) if not x.crowd)


def training_images(
    instances: Instances, labels: int | None, seed: int | None
) -> list[coco_json.Image]:
    """The images with objects, as many as are asked for.

    Args:
      labels: how many; None: all.
      seed: None: the first ones of the file. Otherwise they are drawn; a draw depends on ids and
        seed alone, and a smaller one is part of a larger one.

    Raises:
      UserError: there are fewer.
    """
    images = [image for image in instances.images if objects(instances, image)]
    if seed is not None:
        draw = random.Random(seed)
        order = [(draw.random(), str(x.id), x) for x in sorted(images, key=lambda x: str(x.id))]
        images = [x for *_, x in sorted(order, key=lambda entry: entry[:2])]
    if labels is None:
        return images
    if labels > len(images):
        raise UserError(f"--labels {labels}: only {len(images)} training images have boxes")
    return images[:labels]


def demand_segmentations(data: Annotated, images: list[coco_json.Image]) -> None:
    """UserError unless every object has a segmentation, which Mask R-CNN learns from."""
    boxes = [x for image in images for x in objects(data.instances, image)]
    without = [x for x in boxes if not _is_segmentation(x.entry.get("segmentation"))]
    if without:
        raise UserError(
            f"{data.json}: {len(without)} of {len(boxes)} boxes have no segmentation, which "
            "maskrcnn needs; use --detector fasterrcnn"
        )


def _is_segmentation(value: Any) -> bool:
    """Polygons of three points or more, or a run-length encoding."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(p, list) and len(p) >= 6 for p in value)
    return isinstance(value, dict) and {"counts", "size"} <= set(value)


def load(folder: Path, image: coco_json.Image) -> torch.Tensor:
    """`load_pixels` as float32 [3, h, w] in 0..1."""
    pixels = load_pixels(folder, image)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def load_pixels(folder: Path, image: coco_json.Image) -> np.ndarray:
    """uint8 [h, w, 3] RGB, turned as the EXIF says where only that fits the annotation file.

    Raises:
      UserError: it is damaged, or its sides are not those of the annotation file.
    """
    path = image.path(folder)
    try:
        with open(path, "rb") as file:
            data = file.read()
        pixels = decode_whole(data)
        if pixels.shape[:2] != (image.height, image.width):
            pixels = _upright(data, pixels)
    except (OSError, DecodeError) as error:
        raise UserError(f"{shown(path)} cannot be read: {error}") from error
    if pixels.shape[:2] != (image.height, image.width):
        raise UserError(
            f"{shown(path)} has height and width {pixels.shape[:2]}, its annotation file says "
            f"{(image.height, image.width)}"
        )
    return pixels


def _upright(data: bytes, pixels: np.ndarray) -> np.ndarray:
    """The pixels turned as the file's EXIF says."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            turn = opened.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # Pillow raises anything on hostile bytes
        raise DecodeError(f"its EXIF cannot be read: {error}") from error
    image = Image.fromarray(pixels)
    image.getexif()[_ORIENTATION] = turn
    return np.array(ImageOps.exif_transpose(image))


def target(instances: Instances, image: coco_json.Image, *, masks: bool) -> dict[str, torch.Tensor]:
    """Boxes and labels of an image, with masks if asked for."""
    boxes_of_image = objects(instances, image)
    boxes = np.array([x.box for x in boxes_of_image], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    result = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.tensor([x.label + 1 for x in boxes_of_image], dtype=torch.int64),
    }
    if masks:
        planes = [_mask(x.entry["segmentation"], image) for x in boxes_of_image]
        result["masks"] = torch.from_numpy(np.stack(planes))
    return result


def _mask(segmentation: Any, image: coco_json.Image) -> np.ndarray:
    from pycocotools import mask

    encoded = segmentation
    if isinstance(segmentation, list):
        encoded = mask.merge(mask.frPyObjects(segmentation, image.height, image.width))
    elif isinstance(segmentation["counts"], list):
        encoded = mask.frPyObjects(segmentation, image.height, image.width)
    return mask.decode(encoded)


def mirrored(
    image: torch.Tensor, target: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Left and right swapped."""
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    changed = {"boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        changed["masks"] = target["masks"].flip(2)
    return image.flip(2), target | changed


class Stream(torch.utils.data.Dataset):
    """The endless shuffled, augmented stream of training images, cut at the run's last step.

    An item is (image, target), or the UserError that its image gave: torch's worker processes
    would wrap an exception.
    """

    def __init__(self, data: Annotated, images: list[coco_json.Image], settings: FinetuneSettings):
        self.data, self.images, self.settings = data, images, settings

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size

    def __getitem__(self, position: int) -> tuple[torch.Tensor, dict] | UserError:
        index = schedule.image_at(self.settings.seed, len(self.images), position)
        record = self.images[index]
        try:
            image = load(self.data.folder, record)
        except UserError as error:
            return error
        masks = self.settings.detector == "maskrcnn"
        objects = target(self.data.instances, record, masks=masks)
        if schedule.is_mirrored(self.settings, position):
            return mirrored(image, objects)
        return image, objects


class TestImages(torch.utils.data.Dataset):
    """Images in order; an item is (index, image) or a UserError, as in `Stream`."""

    def __init__(self, folder: Path, images: list[coco_json.Image]):
        self.folder, self.images = folder, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor] | UserError:
        try:
            return index, load(self.folder, self.images[index])
        except UserError as error:
            return error


def batches(
    items: torch.utils.data.Dataset, batch_size: int, workers: int, start: int = 0
) -> torch.utils.data.DataLoader:
    """Lists of items, from item `start`.

    Args:
      workers: processes that read ahead; 0: none.
    """
    return torch.utils.data.DataLoader(
        items,
        batch_size=batch_size,
        sampler=range(start, len(items)),
        num_workers=workers,
        collate_fn=checked,
        worker_init_fn=_leave_signals_to_the_loop,
    )


def _leave_signals_to_the_loop(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; readers that it ended would end the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def checked(items: list) -> list | UserError:
    """The items, or the first UserError among them."""
    return next((x for x in items if isinstance(x, UserError)), items)
