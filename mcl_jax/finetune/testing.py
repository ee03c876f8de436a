"""Detections of a trained detector on test images, in COCO's form for results.

Shapes: see mcl_jax/finetune/images.py; a detection's 'bbox' is [x, y, width, height] in px.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mcl_jax.data import coco_json
from mcl_jax.errors import UserError
from mcl_jax.finetune import images, machine
from mcl_jax.finetune.settings import FinetuneSettings

MASK_THRESHOLD = 0.5  # of a mask's probability


@torch.no_grad()
def detect(
    detector: nn.Module,
    data: images.Annotated,
    tested: list[coco_json.Image],
    category_ids: list[int],
    settings: FinetuneSettings,
    *,
    workers: int,
) -> list[dict[str, Any]]:
    """Detections of all images.

    Args:
      category_ids: of the test file, in the order of the training file's classes.

    Raises:
      UserError: an image cannot be read.
    """
    device = next(detector.parameters()).device
    detector.eval()
    entries: list[dict[str, Any]] = []
    items = images.TestImages(data.folder, tested)
    progress, done = machine.Progress("test image", len(tested)), 0
    for batch in images.batches(items, settings.eval_batch_size, workers):
        if isinstance(batch, UserError):
            raise batch
        outputs = detector([image.to(device) for _, image in batch])
        for (index, _), output in zip(batch, outputs, strict=True):
            entries += results(output, tested[index].id, category_ids)
        done += len(batch)
        progress.update(done)
    return entries


def results(
    output: dict[str, torch.Tensor], image_id: Any, category_ids: list[int]
) -> list[dict[str, Any]]:
    """One image's detections."""
    boxes = output["boxes"].cpu().double().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    entries = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(x, 3) for x in box.tolist()],
            "score": score,
        }
        for box, label, score in rows
        if label > 0  # RetinaNet's output 0 stands for nothing
    ]
    if "masks" in output:
        planes = (output["masks"][:, 0] >= MASK_THRESHOLD).byte().cpu().numpy()
        for entry, plane in zip(entries, planes, strict=True):
            entry["segmentation"] = _encode(plane)
    return entries


def _encode(plane: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask

    encoded = mask.encode(np.asfortranarray(plane))
    return encoded | {"counts": encoded["counts"].decode()}  # JSON has no bytes


def category_order(train: coco_json.Instances, test: coco_json.Instances, path: Path) -> list[int]:
    """The test file's category ids in the order of the training file's classes.

    Raises:
      UserError: the files have other classes; a class that only one of them has cannot be tested.
    """
    ids = dict(zip(test.class_names, test.category_ids, strict=True))
    differing = set(ids) ^ set(train.class_names)
    if differing:
        names = ", ".join(sorted(differing)[:5])
        raise UserError(f"{path} has other categories than --train_json: {names}")
    return [ids[name] for name in train.class_names]
