"""Detections, and greedy non-maximum suppression as a fixed-size computation.

Shapes: k candidate boxes of an image, D detections of an image; boxes are float [4] (ymin, xmin,
ymax, xmax) in px.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Detections(NamedTuple):
    """Boxes [..., D, 4] in px, labels int [..., D], scores [..., D]; a score of 0 is no detection."""

    boxes: Array
    labels: Array
    scores: Array


def suppress(boxes: Array, labels: Array, nms_iou: float) -> Array:
    """Greedy non-maximum suppression within classes.

    Args:
      boxes: [k, 4], best first; labels: int [k].
      nms_iou: boxes that overlap a kept one of their class by more go.

    Returns:
      bool [k], True for the kept.
    """
    low = jnp.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = jnp.maximum(high - low, 0.0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    union = area[:, None] + area[None, :] - shared
    rank = jnp.arange(len(boxes))
    beats = (
        (shared > nms_iou * union)
        & (labels[:, None] == labels[None, :])
        & (rank[:, None] < rank[None, :])
    )
    return jax.lax.fori_loop(
        0, len(boxes), lambda i, mask: mask & ~(beats[i] & mask[i]), jnp.ones(len(boxes), bool)
    )
