"""What training images of the probe go through, and their boxes with them: mirror, size, place.

Shapes: B images, H their side in px, N boxes of an image (padded); boxes are float [4]
(ymin, xmin, ymax, xmax) in px; an extent is the valid (height, width) in px at the top left.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Placement(NamedTuple):
    """Size and place of images on their canvas: scale float32 [B], and offset float32 [B, 2], the
    (y, x) px at which the top left corner of the image comes to lie; negative where it is cut."""

    scale: Array
    offset: Array


def draw_placement(
    key: Array, extents: Array, image_size: int, scales: tuple[float, float]
) -> Placement:
    """Large-scale jitter: a random size, then a random place on the canvas.

    Where the image is larger than the canvas a random part of it is seen, where it is smaller it
    lies at a random place, on each axis by itself. Image i depends on the key, i and its extent.

    Args:
      key: of the step.
      extents: int32 [B, 2].
      image_size: H in px.
      scales: lowest and highest factor of the size, drawn log-uniformly.
    """

    def draw(index: Array, extent: Array) -> Placement:
        size_key, place_key = jax.random.split(jax.random.fold_in(key, index))
        low, high = jnp.log(jnp.asarray(scales, jnp.float32))
        scale = jnp.exp(jax.random.uniform(size_key, minval=low, maxval=high))
        room = image_size - extent * scale
        return Placement(scale, room * jax.random.uniform(place_key, (2,)))

    return jax.vmap(draw)(jnp.arange(len(extents)), extents)


def mirror(images: Array, extents: Array, mirrored: Array) -> Array:
    """Swaps left and right within the extent.

    Args:
      images: [B, H, W, 3].
      extents: int32 [B, 2].
      mirrored: bool [B], which ones.
    """
    columns = jnp.arange(images.shape[2])
    width = extents[:, 1:]
    swapped = jnp.where(columns < width, width - 1 - columns, columns)
    source = jnp.where(mirrored[:, None], swapped, columns)
    return jnp.take_along_axis(images, source[:, None, :, None], 2)


def mirror_boxes(boxes: Array, extents: Array, mirrored: Array) -> Array:
    """Boxes [B, N, 4] of what `mirror` makes."""
    width = extents[:, None, 1]
    swapped = jnp.stack(
        [boxes[..., 0], width - boxes[..., 3], boxes[..., 2], width - boxes[..., 1]], -1
    )
    return jnp.where(mirrored[:, None, None], swapped, boxes)


def place(images: Array, extents: Array, placement: Placement) -> tuple[Array, Array]:
    """Resizes images and puts them on canvases of the same size, as two matrix products each.

    Args:
      images: [B, H, H, 3].
      extents: int32 [B, 2].
      placement: of `draw_placement`.

    Returns:
      float32 [B, H, H, 3], and bool [B, H, H]: where a pixel is of the image.
    """
    size = images.shape[1]

    def one(image, extent, scale, offset):
        rows, inside_rows = _weights(extent[0], scale, offset[0], size)
        columns, inside_columns = _weights(extent[1], scale, offset[1], size)
        image = image.astype(jnp.float32)
        image = jnp.einsum("yh,hwc->ywc", rows, image, precision=jax.lax.Precision.HIGH)
        image = jnp.einsum("xw,ywc->yxc", columns, image, precision=jax.lax.Precision.HIGH)
        return image, inside_rows[:, None] & inside_columns[None, :]

    return jax.vmap(one)(images, extents, *placement)


def _weights(length: Array, scale: Array, offset: Array, size: int) -> tuple[Array, Array]:
    """Bilinear antialiased resampling of [0, length) to [offset, offset + scale * length).

    Returns:
      float32 [size, size], rows sum to 1 inside and are 0 outside, and bool [size]: inside.
    """
    source = jnp.arange(size) + 0.5
    center = (jnp.arange(size) + 0.5 - offset) / scale
    distance = jnp.abs(source - center[:, None]) * jnp.minimum(scale, 1.0)
    weights = jnp.where(source < length, jnp.maximum(0.0, 1.0 - distance), 0.0)
    inside = (center >= 0) & (center < length)
    weights = jnp.where(inside[:, None], weights, 0.0)
    return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6), inside


def place_boxes(
    boxes: Array, labels: Array, placement: Placement, image_size: int, min_visible: float
) -> tuple[Array, Array]:
    """Boxes and labels of what `place` makes.

    Args:
      boxes: [B, N, 4]; labels: int [B, N], -1 for padding.
      placement: of `draw_placement`.
      image_size: H in px.
      min_visible: share of a box's area that must be left on the canvas; others lose their label.

    Returns:
      Boxes clipped to the canvas, and labels.
    """
    offset = jnp.tile(placement.offset, 2)[:, None, :]
    moved = boxes * placement.scale[:, None, None] + offset
    clipped = jnp.clip(moved, 0.0, image_size)
    full_area, clipped_area = ((b[..., 2:] - b[..., :2]).prod(-1) for b in (moved, clipped))
    visible = (clipped_area > 0) & (clipped_area >= min_visible * full_area)
    return clipped, jnp.where(visible, labels, -1)
