"""Crop and blur of a view as matrix products: a resampling is a matrix over rows, one over columns.

Shapes: C canvas side in px, H image side in px; planes float32 [H, 3, W] (rows, channels, columns).
With the channels between rows and columns nothing has to be transposed in between.
"""

import jax
import jax.numpy as jnp

# Three bf16 passes on TPU, TF32 on GPU: crop and blur together stay well within half an 8-bit step,
# where the default's single bf16 pass may be off by more than one.
_PRECISION = jax.lax.Precision.HIGH


def crop(canvas, box, flip, *, image_size):
    """Crops a box, resizes it to H × H (bilinear, antialiased) and flips it: two matrix products.

    The same as torchvision's `resized_crop(antialias=True)` in float: nothing outside the box is
    read, and nothing is rounded to 8 bits.

    Args:
      canvas: uint8 [C, C, 3].
      box: int32 [4], top, left, height, width in px.
      flip: bool [], mirrors the columns.
      image_size: H in px.

    Returns:
      float32 [H, 3, H] in [0, 1].
    """
    rows = resize_weights(
        box[0], box[2], flip=False, source_size=canvas.shape[0], target_size=image_size
    )
    columns = resize_weights(
        box[1], box[3], flip=flip, source_size=canvas.shape[1], target_size=image_size
    )
    planes = canvas.transpose(0, 2, 1).astype(jnp.float32)
    planes = jnp.einsum("yh,hcw->ycw", rows, planes, precision=_PRECISION)
    return jnp.einsum("ycw,xw->ycx", planes, columns, precision=_PRECISION) / 255.0


def resize_weights(start, length, flip, source_size, target_size):
    """Bilinear antialiased resampling of [start, start + length) as a matrix.

    A triangle of half width max(1, length / target_size) source px around each target's center,
    cut off at the interval's ends and normalized: PIL's and torch's rule.

    Args:
      start, length, source_size, target_size: in px.
      flip: bool, reverses the targets.

    Returns:
      float32 [target_size, source_size], rows sum to 1.
    """
    scale = length / target_size
    target = jnp.arange(target_size)
    target = jnp.where(flip, target_size - 1 - target, target)
    center = start + (target + 0.5) * scale
    source = jnp.arange(source_size)
    distance = jnp.abs(source + 0.5 - center[:, None]) / jnp.maximum(scale, 1.0)
    inside = (source >= start) & (source < start + length)
    weights = jnp.where(inside, jnp.maximum(0.0, 1.0 - distance), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def blur(planes, sigma, stride=1):
    """Gaussian blur by two matrix products, at each stride-th row and column of the result.

    Args:
      planes: float32 [H, 3, W].
      sigma: in px of `planes`.
      stride: in px.

    Returns:
      float32 [H / stride, 3, W / stride].
    """
    height, _, width = planes.shape
    # Columns first, unlike the crop: the color operations before it then write the operand of the
    # product. Rows first needs [H, 3 * W]; all augmentation then takes 1.4 times as long on CPU.
    rows, columns = (blur_weights(sigma, size)[::stride] for size in (height, width))
    planes = jnp.einsum("hcw,xw->hcx", planes, columns, precision=_PRECISION)
    return jnp.einsum("yh,hcx->ycx", rows, planes, precision=_PRECISION)


def blur_weights(sigma, size):
    """Gaussian blur of `size` px as a matrix, edges reflected (the edge px not repeated).

    torchvision's `gaussian_blur` with the widest kernel that reflection allows, 2·size - 1 px; what
    lies beyond either edge is folded back onto its mirror image.

    Args:
      sigma, size: in px.

    Returns:
      float32 [size, size], rows sum to 1.
    """
    target, source, end = jnp.arange(size)[:, None], jnp.arange(size), size - 1

    def tap(position):
        distance = jnp.abs(position - target)
        return jnp.where(distance <= end, jnp.exp(-0.5 * jnp.square(distance / sigma)), 0.0)

    weights = tap(source)
    weights += jnp.where(source > 0, tap(-source), 0.0)
    weights += jnp.where(source < end, tap(2 * end - source), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
