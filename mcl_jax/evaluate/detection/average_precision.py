"""Average precision of padded arrays of boxes.

Shapes: n images, N boxes of an image (padded), D detections of an image (padded); boxes are
float [4] (ymin, xmin, ymax, xmax) in px.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcl_jax.evaluate.detection.boxed_images import Truth
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.report import coco_scores


def average_precision(
    truth: Truth,
    detections: Detections,
    class_names: Sequence[str],
    area_bounds: tuple[float, float],
) -> dict[str, float]:
    """`coco_scores.scores` of a test.

    Args:
      truth: [n, N]; a detection of an ignored box counts neither as right nor as wrong.
      detections: [n, D]; scores of 0 are padding.
      class_names: of the C classes.
      area_bounds: px, see there.

    Raises:
      UserError: pycocotools is not installed.
    """
    labels = np.where(detections.scores > 0, detections.labels, -1)
    return coco_scores.scores(
        [{"id": i} for i in range(len(labels))],
        dict(enumerate(class_names)),
        truth=_entries(truth.boxes, truth.labels, ignored=truth.ignored),
        detections=_entries(detections.boxes, labels, scores=detections.scores),
        area_bounds=area_bounds,
        max_detections=detections.scores.shape[1],
    )


def _entries(
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The boxes whose label is not -1, in COCO's form."""
    entries = []
    for image, row in zip(*np.nonzero(labels >= 0), strict=True):
        top, left, bottom, right = map(float, boxes[image, row])
        height, width = bottom - top, right - left
        entry = {
            "image_id": int(image),
            "category_id": int(labels[image, row]),
            "bbox": [left, top, width, height],
            "area": height * width,
            "iscrowd": int(ignored is not None and ignored[image, row]),
        }
        if scores is not None:
            entry["score"] = float(scores[image, row])
        entries.append(entry)
    return entries
