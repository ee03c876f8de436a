"""COCO average precision over sizes of our own choice, by pycocotools.

Shapes: n images, N boxes of an image (padded), D detections of an image (padded); boxes are
float [4] (ymin, xmin, ymax, xmax) in px.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.boxed_images import Truth
from mcl_jax.evaluate.detection.nms import Detections

AREAS = ("all", "small", "medium", "large")


def average_precision(
    truth: Truth,
    detections: Detections,
    class_names: Sequence[str],
    area_bounds: tuple[float, float],
) -> dict[str, float]:
    """Average precision as COCO defines it, classes averaged.

    Args:
      truth: [n, N]; a detection of an ignored box counts neither as right nor as wrong.
      detections: [n, D]; scores of 0 are padding.
      class_names: of the C classes.
      area_bounds: px, the sides of the squares between small and medium, medium and large. COCO's
        are 32 and 96 on images of about 640 px.

    Returns:
      'ap' (mean over IoU 0.50:0.05:0.95), 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
      'ap/iou50' to 'ap/iou95', and 'ap/NAME' of every class, in [0, 1]; NaN where there is no
      ground truth.

    Raises:
      UserError: pycocotools is not installed.
    """
    coco, evaluation = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # Both classes print their progress.
        real = _index(coco, truth.boxes, truth.labels, len(class_names), ignored=truth.ignored)
        labels = np.where(detections.scores > 0, detections.labels, -1)
        guesses = _index(coco, detections.boxes, labels, len(class_names), scores=detections.scores)
        run = evaluation(real, guesses, "bbox")
        edges = [side**2 for side in (0.0, *area_bounds, 1e5)]
        run.params.areaRng = [[0.0, edges[-1]], *map(list, zip(edges, edges[1:], strict=False))]
        run.params.areaRngLbl = list(AREAS)
        run.params.maxDets = [detections.scores.shape[1]]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0]  # [IoUs, recalls, classes, areas]
    whole = precision[..., 0]
    at = {round(100 * iou): _mean(whole[i]) for i, iou in enumerate(run.params.iouThrs)}
    by_class = {f"ap/{name}": _mean(whole[..., i]) for i, name in enumerate(class_names)}
    return {
        "ap": _mean(whole),
        "ap50": at[50],
        "ap75": at[75],
        **{f"ap_{AREAS[i]}": _mean(precision[..., i]) for i in range(1, len(AREAS))},
        **{f"ap/iou{iou}": value for iou, value in at.items()},
        **by_class,
    }


def _mean(precision: np.ndarray) -> float:
    """Mean of the entries that exist; -1 marks classes without ground truth."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else float("nan")


def _index(
    coco: Any,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    scores: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
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
            "iscrowd": int(ignored is not None and ignored[image, row]),
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
