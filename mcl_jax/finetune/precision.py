"""COCO average precision of detections in an annotation file's own terms, by pycocotools.

Boxes are [x, y, width, height] in px of the annotated image.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcl_jax.data.coco_json import Image, Instances

AREAS = ("all", "small", "medium", "large")


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
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = dict(zip(instances.category_ids, instances.class_names, strict=True))
    with contextlib.redirect_stdout(io.StringIO()):  # both classes print their progress
        run = COCOeval(
            _index(COCO, images, ids, _truth(instances, images, kind)),
            _index(COCO, images, ids, [_with_area(x, kind) for x in detections]),
            kind,
        )
        edges = [side**2 for side in (0.0, *area_bounds, 1e5)]
        run.params.areaRng = [[0.0, edges[-1]], *map(list, zip(edges, edges[1:], strict=False))]
        run.params.areaRngLbl = list(AREAS)
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
    return summary(run.eval["precision"][..., 0], run.params.iouThrs, list(ids.values()))


def summary(
    precision: np.ndarray, ious: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """What `average_precision` returns.

    Args:
      precision: [IoUs, recalls, classes, AREAS], -1 where there is no truth.
      ious: overlaps from which a detection counts.
    """
    whole = precision[..., 0]
    at = {round(100 * iou): x for iou, x in zip(ious, whole, strict=True)}
    parts = {"ap": whole, "ap50": at[50], "ap75": at[75]}
    parts |= {f"ap_{AREAS[i]}": precision[..., i] for i in range(1, len(AREAS))}
    parts |= {f"ap/iou{iou}": x for iou, x in at.items()}
    parts |= {f"ap/{name}": whole[..., i] for i, name in enumerate(class_names)}
    known = {key: x[x > -1] for key, x in parts.items()}
    return {key: float(x.mean()) for key, x in known.items() if x.size}


def _truth(instances: Instances, images: Sequence[Image], kind: str) -> list[dict[str, Any]]:
    found = []
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
            found.append(entry)
    return found


def _with_area(detection: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "segm":
        from pycocotools import mask

        area = float(mask.area(detection["segmentation"]))
    else:
        area = detection["bbox"][2] * detection["bbox"][3]
    return detection | {"area": area, "iscrowd": 0}


def _index(
    coco: Any, images: Sequence[Image], ids: dict[int, str], annotations: list[dict[str, Any]]
) -> Any:
    """A pycocotools data set."""
    index = coco()
    index.dataset = {
        "images": [{"id": x.id, "height": x.height, "width": x.width} for x in images],
        "categories": [{"id": i, "name": name} for i, name in ids.items()],
        # an id of 0 would read as 'not matched'
        "annotations": [x | {"id": i} for i, x in enumerate(annotations, start=1)],
    }
    index.createIndex()
    return index
