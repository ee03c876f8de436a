"""COCO average precision of detections in an annotation file's own terms, by pycocotools.

Boxes are [x, y, width, height] in px of the annotated image.
"""

import math
from collections.abc import Sequence
from typing import Any

from mcl_jax.data.coco_json import Image, Instances
from mcl_jax.report import coco_scores


def average_precision(
    instances: Instances,
    images: Sequence[Image],
    detections: Sequence[dict[str, Any]],
    kind: str,
    area_bounds: tuple[float, float],
    max_detections: int,
) -> dict[str, float]:
    """Average precision as COCO defines it.

    Args:
      instances: the truth.
      images: those that were tested.
      detections: in COCO's form for results: 'image_id', 'category_id', 'score' and 'bbox', and
        for masks 'segmentation'.
      kind: 'bbox' | 'segm'.
      area_bounds: px, sides of the squares between small and medium, medium and large.
      max_detections: of an image, those with the highest scores.

    Returns:
      'ap' (mean over IoU 0.50:0.05:0.95), 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
      'ap/iou50' to 'ap/iou95', and 'ap/NAME' of every class, in [0, 1]. What has no truth is left
      out. The same keys as the detection probe's.
    """
    names = dict(zip(instances.category_ids, instances.class_names, strict=True))
    scores = coco_scores.scores(
        [{"id": x.id, "height": x.height, "width": x.width} for x in images],
        names,
        truth=_truth(instances, images, kind),
        detections=[_with_area(x, kind) for x in detections],
        area_bounds=area_bounds,
        max_detections=max_detections,
        kind=kind,
    )
    return {key: value for key, value in scores.items() if math.isfinite(value)}


def _truth(instances: Instances, images: Sequence[Image], kind: str) -> list[dict[str, Any]]:
    result = []
    for image in images:
        for x in instances.of(image):
            entry = {
                "image_id": image.id,
                "category_id": instances.category_ids[x.label],
                "bbox": list(x.box),
                "area": x.entry.get("area", x.box[2] * x.box[3]),
                "iscrowd": int(x.crowd),
            }
            if kind == "segm":
                if "segmentation" not in x.entry:  # of a crowd; objects are known to have theirs
                    continue
                entry["segmentation"] = x.entry["segmentation"]
            result.append(entry)
    return result


def _with_area(detection: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "segm":
        from pycocotools import mask

        area = float(mask.area(detection["segmentation"]))
    else:
        area = detection["bbox"][2] * detection["bbox"][3]
    return detection | {"area": area, "iscrowd": 0}
