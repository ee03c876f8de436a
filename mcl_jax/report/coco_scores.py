"""COCO's average precision by pycocotools, over sizes of our own choice. Needs no JAX.

Boxes are [x, y, width, height] in px.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcl_jax.errors import UserError

AREAS = ("all", "small", "medium", "large")
Entries = Sequence[Mapping[str, Any]]


def pycocotools() -> tuple[type, type]:
    """(COCO, COCOeval); UserError if the library is missing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("average precision needs pycocotools: pip install pycocotools") from error
    return COCO, COCOeval


def scores(
    images: Entries,
    class_names: Mapping[int, str],
    truth: Entries,
    detections: Entries,
    *,
    area_bounds: tuple[float, float],
    max_detections: int,
    kind: str = "bbox",
) -> dict[str, float]:
    """Average precision as COCO defines it, classes averaged.

    Args:
      images: {'id', ...} of all images that were tested.
      class_names: category id -> name.
      truth, detections: annotations in COCO's form without 'id'; detections with 'score'.
      area_bounds: px, the sides of the squares between small and medium, medium and large. COCO's
        are 32 and 96 on images of about 640 px.
      max_detections: of an image, those with the highest scores.
      kind: 'bbox' | 'segm'.

    Returns:
      'ap' (mean over IoU 0.50:0.05:0.95), 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large',
      'ap/iou50' to 'ap/iou95', and 'ap/NAME' of every class, in [0, 1]; NaN where there is no
      truth.

    Raises:
      UserError: pycocotools is not installed.
    """
    coco, evaluation = pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # both classes print their progress
        run = evaluation(
            _index(coco, images, class_names, truth),
            _index(coco, images, class_names, detections),
            kind,
        )
        edges = [side**2 for side in (0.0, *area_bounds, 1e5)]
        run.params.areaRng = [[0.0, edges[-1]], *map(list, zip(edges, edges[1:], strict=False))]
        run.params.areaRngLbl = list(AREAS)
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
    return _summary(run.eval["precision"][..., 0], run.params.iouThrs, list(class_names.values()))


def _summary(
    precision: np.ndarray, ious: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """What `scores` returns, of precision [IoUs, recalls, classes, AREAS], -1 without truth."""
    all_sizes = precision[..., 0]
    by_iou = {round(100 * iou): x for iou, x in zip(ious, all_sizes, strict=True)}
    parts = {"ap": all_sizes, "ap50": by_iou[50], "ap75": by_iou[75]}
    parts |= {f"ap_{AREAS[i]}": precision[..., i] for i in range(1, len(AREAS))}
    parts |= {f"ap/iou{iou}": x for iou, x in by_iou.items()}
    parts |= {f"ap/{name}": all_sizes[..., i] for i, name in enumerate(class_names)}
    values = {key: x[x > -1] for key, x in parts.items()}
    return {key: float(x.mean()) if x.size else float("nan") for key, x in values.items()}


def _index(coco: Any, images: Entries, names: Mapping[int, str], annotations: Entries) -> Any:
    """A pycocotools data set."""
    index = coco()
    index.dataset = {
        "images": list(images),
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        # an id of 0 would read as 'not matched'
        "annotations": [{**x, "id": i} for i, x in enumerate(annotations, start=1)],
    }
    index.createIndex()
    return index
