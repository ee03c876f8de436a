"""FCOS (Tian et al., 2019), small: head, targets, loss and decoding of the detection probe.

Shapes:
  B images, N boxes of an image (padded), C classes
  L locations of all pyramid levels together, level after level, row-major within a level
  box        float [4]  ymin, xmin, ymax, xmax in px
  distances  float [4]  from a location up, left, down and right to the sides of its box, px
  point      float [2]  y, x of a location in px: the center of its cell
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcl_jax.evaluate.detection.nms import Detections, suppress
from mcl_jax.models.convolution import convolve

Array = jax.Array

_head_init = nn.initializers.normal(0.01)  # Tian et al., 2019, section 4


class Grid(NamedTuple):
    """All locations: points float32 [L, 2], and each one's stride and range (low, high] of its
    largest distance, float32 [L] in px."""

    points: np.ndarray
    strides: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Outputs(NamedTuple):
    """The head's: logits [B, L, C], distances [B, L, 4] in px, centerness logits [B, L]; float32.

    As targets: labels int [B, L] (-1: background), distances, and centerness in [0, 1].
    """

    classes: Array
    distances: Array
    centerness: Array


def stride(level: str) -> int:
    """px between locations of pyramid level 'P2', 'P3', ...: 2^level."""
    return 2 ** int(level[1:])


def make_grid(image_size: int, levels: tuple[str, ...], bounds: tuple[float, ...]) -> Grid:
    """Locations of square images.

    Args:
      image_size: px, a multiple of every stride.
      levels: pyramid levels, finest first.
      bounds: px, between one level's range of distances and the next one's: len(levels) - 1.
    """
    edges = (0.0, *bounds, np.inf)
    points, rows = [], []
    for level, low, high in zip(levels, edges[:-1], edges[1:], strict=True):
        step = stride(level)
        centers = (np.arange(image_size // step) + 0.5) * step
        y, x = np.meshgrid(centers, centers, indexing="ij")
        points.append(np.stack([y.ravel(), x.ravel()], -1))
        rows.append(np.tile([[step, low, high]], (y.size, 1)))
    columns = np.concatenate(rows).astype(np.float32).T
    return Grid(np.concatenate(points).astype(np.float32), *columns)


class ConvGroupNorm(nn.Module):
    """3x3 convolution -> GroupNorm -> ReLU.

    GroupNorm, as in FCOS's own code: one set of statistics could not serve levels that share the
    head, and the features' scale, which differs between pre-trained networks, drops out.
    """

    features: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _head_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        x = convolve(x.astype(self.dtype), kernel, 1)
        return nn.relu(nn.GroupNorm(self.groups, dtype=self.dtype, name="norm")(x))


class Head(nn.Module):
    """Towers for classes and boxes, shared by all levels but for one box scale per level.

    Attributes:
      levels: pyramid levels, finest first.
      classes: C.
      channels, convs, groups: of each of the two towers.
      prior: probability of an object that every location starts from.
      dtype: of the towers; outputs are float32.
    """

    levels: tuple[str, ...]
    classes: int
    channels: int
    convs: int
    groups: int
    prior: float
    dtype: jnp.dtype

    def setup(self):
        def tower(name):
            return [
                ConvGroupNorm(self.channels, self.groups, self.dtype, name=f"{name}{i}")
                for i in range(self.convs)
            ]

        def predictor(features, bias=0.0):
            return nn.Conv(
                features,
                (3, 3),
                padding=1,
                dtype=self.dtype,
                kernel_init=_head_init,
                bias_init=nn.initializers.constant(bias),
            )

        self.class_tower, self.box_tower = tower("class_tower"), tower("box_tower")
        self.class_out = predictor(self.classes, -float(np.log(1 / self.prior - 1)))
        self.box_out = predictor(4)
        self.centerness_out = predictor(1)
        self.scales = self.param("scales", nn.initializers.ones, (len(self.levels),))

    def __call__(self, pyramid: Mapping[str, Array]) -> Outputs:
        """{'P3': [B, h, w, F], ...} -> Outputs; maps of other levels are not read."""
        per_level = []
        for i, level in enumerate(self.levels):
            classes = boxes = pyramid[level]
            for layer in self.class_tower:
                classes = layer(classes)
            for layer in self.box_tower:
                boxes = layer(boxes)
            raw = self.box_out(boxes).astype(jnp.float32) * self.scales[i]
            maps = (self.class_out(classes), jnp.exp(raw) * stride(level))
            maps = (*maps, self.centerness_out(boxes))
            per_level.append([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps])
        classes, boxes, centerness = (
            jnp.concatenate(m, 1).astype(jnp.float32) for m in zip(*per_level, strict=True)
        )
        return Outputs(classes, boxes, centerness[..., 0])


def encode(boxes: Array, points: Array) -> Array:
    """Distances [..., 4] from points [..., 2] to the sides of boxes [..., 4]."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def decode(distances: Array, points: Array) -> Array:
    """Boxes [..., 4]: the inverse of `encode`."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], -1)


def assign(boxes: Array, labels: Array, grid: Grid, radius: float) -> Outputs:
    """What every location of one image has to predict (Tian et al., section 3.1 and 3.2).

    A location takes a box whose inside it lies in, within `radius` strides of the box's center on
    both axes (the authors' later 'center sampling'), if the largest distance falls in the range of
    its level; of several boxes the smallest.

    Args:
      boxes: [N, 4]; labels: int [N], -1 for padding.
      grid: the L locations.
      radius: in strides.

    Returns:
      Targets: labels [L], distances [L, 4] (of any box where background), centerness [L].
    """
    points = grid.points[:, None]  # [L, 1, 2] against [N, 4]
    distances = encode(jnp.broadcast_to(boxes, (len(grid.points), *boxes.shape)), points)
    largest = distances.max(-1)
    off_center = jnp.abs(points - (boxes[:, :2] + boxes[:, 2:]) / 2).max(-1)
    fits = (
        (distances.min(-1) > 0)
        & (off_center < radius * grid.strides[:, None])
        & (largest > grid.low[:, None])
        & (largest <= grid.high[:, None])
        & (labels >= 0)
    )
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    best = jnp.where(fits, area, jnp.inf).argmin(1)
    box_distances = jnp.take_along_axis(distances, best[:, None, None], 1)[:, 0]
    label = jnp.where(fits.any(1), labels[best], -1)
    return Outputs(label, box_distances, jnp.where(label >= 0, centerness(box_distances), 0.0))


def centerness(distances: Array) -> Array:
    """sqrt(min/max of left, right x min/max of top, bottom): 1 at the center, 0 at a side
    (equation 3); distances [..., 4] -> [...]."""
    first, second = distances[..., :2], distances[..., 2:]
    low, high = jnp.minimum(first, second), jnp.maximum(first, second)
    ratio = jnp.maximum(low, 0.0) / jnp.maximum(high, 1e-6)
    return jnp.sqrt(ratio.prod(-1))


def giou(predicted: Array, target: Array) -> Array:
    """Generalized IoU (Rezatofighi et al., 2019) of boxes that share a point inside both.

    Args:
      predicted, target: positive distances [..., 4] from that point.

    Returns:
      [...] in (-1, 1]; 1 for equal boxes.
    """

    def area(d):
        return (d[..., 0] + d[..., 2]) * (d[..., 1] + d[..., 3])

    shared = area(jnp.minimum(predicted, target))
    hull = area(jnp.maximum(predicted, target))
    union = area(predicted) + area(target) - shared
    return shared / union - (hull - union) / hull


def losses(outputs: Outputs, targets: Outputs, alpha: float, gamma: float) -> dict[str, Array]:
    """The three terms of FCOS's loss, which adds them up (equation 2, with GIoU for IoU).

    Args:
      outputs, targets: of the whole batch, [B, L, ...].
      alpha, gamma: of the focal loss (Lin et al., 2017).

    Returns:
      'classes': focal loss over all locations, per object location; 'boxes': 1 - GIoU of the object
      locations, averaged with their centerness as weights; 'centerness': their cross-entropy.
    """
    positive = targets.classes >= 0
    count = jnp.maximum(positive.sum(), 1)
    one_hot = jax.nn.one_hot(targets.classes, outputs.classes.shape[-1])  # -1 is all zeros
    focal = optax.sigmoid_focal_loss(outputs.classes, one_hot, alpha=alpha, gamma=gamma)
    # Background has distances of no meaning; ones keep their gradient finite, and weigh nothing.
    safe = jnp.where(positive[..., None], targets.distances, 1.0)
    weight = targets.centerness
    overlap = giou(outputs.distances, safe)
    entropy = optax.sigmoid_binary_cross_entropy(outputs.centerness, targets.centerness)
    return {
        "classes": focal.sum() / count,
        "boxes": ((1 - overlap) * weight).sum() / jnp.maximum(weight.sum(), 1e-6),
        "centerness": jnp.where(positive, entropy, 0.0).sum() / count,
    }


def detect(
    outputs: Outputs,
    points: np.ndarray,
    extent: Array,
    *,
    score_threshold: float,
    candidates: int,
    nms_iou: float,
    max_detections: int,
) -> Detections:
    """Detections of one image, best first, from outputs without batch axis.

    Args:
      outputs: [L, ...]; points: [L, 2].
      extent: [2] valid (height, width) in px, to which boxes are clipped.
      score_threshold: of the class probability, before its product with the centerness.
      candidates: (location, class) pairs that enter non-maximum suppression, the best ones.
      nms_iou: IoU above which the lower score of two boxes of a class goes.
      max_detections: D.
    """
    probability = jax.nn.sigmoid(outputs.classes)
    score = probability * jax.nn.sigmoid(outputs.centerness)[:, None]
    score = jnp.where(probability > score_threshold, score, 0.0).ravel()
    scores, index = jax.lax.top_k(score, min(candidates, score.size))
    location, labels = jnp.divmod(index, outputs.classes.shape[-1])
    boxes = decode(outputs.distances[location], jnp.asarray(points)[location])
    boxes = jnp.clip(boxes, 0.0, jnp.concatenate([extent, extent]).astype(boxes.dtype))
    survivors = jnp.where(suppress(boxes, labels, nms_iou), scores, 0.0)
    scores, order = jax.lax.top_k(survivors, min(max_detections, survivors.size))
    return Detections(boxes[order], labels[order], scores)
