"""COCO average precision over sizes of our own choice, by pycocotools.

Shapes: n images, N boxes of an image (padded), D detections of an image (padded); boxes are
float [4] (ymin, xmin, ymax, xmax) in px.
"""

import contextlib
import io
from typing import Any

import numpy as np

from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.nms import Detections

AREAS = ("all", "small", "medium", "large")


def average_precision(
    boxes: np.ndarray,
    labels: np.ndarray,
    detections: Detections,
    classes: int,
    area_bounds: tuple[float, float],
) -> dict[str, float]:
    """Average precision as COCO defines it, classes averaged.

    Args:
      boxes: ground truth [n, N, 4]; labels: int [n, N], -1 for padding.
      detections: [n, D]; scores of 0 are padding.
      classes: C.
      area_bounds: px, the sides of the squares between small and medium, medium and large. COCO's
        are 32 and 96 on images of about 640 px.

    Returns:
      'ap' (mean over IoU 0.50:0.05:0.95), 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large' in
      [0, 1]; NaN where there is no ground truth.

    Raises:
      UserError: pycocotools is not installed.
    """
    coco, evaluation = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # Both classes print their progress.
        truth = _index(coco, boxes, labels, None, classes)
        found = np.where(detections.scores > 0, detections.labels, -1)
        guesses = _index(coco, detections.boxes, found, detections.scores, classes)
        run = evaluation(truth, guesses, "bbox")
        edges = [side**2 for side in (0.0, *area_bounds, 1e5)]
        run.params.areaRng = [[0.0, edges[-1]], *map(list, zip(edges, edges[1:], strict=False))]
        run.params.areaRngLbl = list(AREAS)
        run.params.maxDets = [detections.scores.shape[1]]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0]  # [IoUs, recalls, classes, areas]
    at = {round(100 * iou): i for i, iou in enumerate(run.params.iouThrs)}
    return {
        "ap": _mean(precision[..., 0]),
        "ap50": _mean(precision[at[50], ..., 0]),
        "ap75": _mean(precision[at[75], ..., 0]),
        **{f"ap_{AREAS[i]}": _mean(precision[..., i]) for i in range(1, len(AREAS))},
    }


def _mean(precision: np.ndarray) -> float:
    """Mean of the entries that exist; -1 marks classes without ground truth."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float("nan")


def _index(
    coco: Any, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, classes: int
) -> Any:
    """A pycocotools data set of the boxes whose label is not -1."""
    annotations = []
    for image, row in zip(*np.nonzero(labels >= 0), strict=True):
        top, left, bottom, right = map(float, boxes[image, row])
        height, width = bottom - top, right - left
        annotation = {
            "id": len(annotations) + 1,  # 0 would read as 'not matched'
            "image_id": int(image),
            "category_id": int(labels[image, row]),
            "bbox": [left, top, width, height],
            "area": height * width,
            "iscrowd": 0,
        }
        if scores is not None:
            annotation["score"] = float(scores[image, row])
        annotations.append(annotation)
    index = coco()
    index.dataset = {
        "images": [{"id": i} for i in range(len(labels))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def check_installed() -> None:
    """UserError if pycocotools is missing."""
    _pycocotools()


def _pycocotools() -> tuple[type, type]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("the detection probe needs pycocotools: pip install pycocotools") from error
    return COCO, COCOeval
