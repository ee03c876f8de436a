"""Convolution with torch's padding, in the formulation that suits platform and shape.

Shapes: x [N, H, W, C]; kernel HWIO [k, k, C, F]; out [N, H/stride, W/stride, F].

XLA's CPU convolutions are slow in three cases (design section 5). Each of them has another
formulation here, equal up to rounding. Process CPU time, ours against XLA's: 172 maps of 2x2, 128 -> 128
channels, forward: 2.3 ms / 44 ms; 1x1, 43 maps of 64x64, 64 -> 256, weight gradient: 95 ms / 815 ms;
7x7 stem, 172 images of 64x64, 3 -> 16, forward: 11 ms / 23 ms. Weight gradients of larger 3x3 maps
stay XLA's: neither patches nor shifted products were faster. On TPU and GPU all convolutions are
XLA's.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mcl_jax import sharding

Array = jax.Array

# px; the largest output map that runs as a matrix product on CPU. Above it XLA's is faster.
LARGEST_PATCH_MAP = 4
# Columns of a stride-2 stem that act as one: 4 * 3 channels in, two columns out side by side.
FOLD = 4
# Output channels up to which folding is faster. With 64 it is slower (9 ms against 5): they fill
# the registers without it.
WIDEST_FOLDED_STEM = 32


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """torch.nn.Conv2d without bias: padding (k - 1) // 2 on every side, never 'SAME'.

    'SAME' pads stride-2 convolutions on the right only and shifts every feature map.
    """
    kernel = kernel.astype(x.dtype)
    on_cpu = formulation_on_cpu(x.shape, kernel.shape, stride)
    if on_cpu is convolve_directly:
        return convolve_directly(x, kernel, stride)
    return sharding.by_platform(
        x,
        kernel,
        cpu=lambda x, kernel: on_cpu(x, kernel, stride),
        default=lambda x, kernel: convolve_directly(x, kernel, stride),
    )


def formulation_on_cpu(shape: tuple[int, ...], kernel: tuple[int, ...], stride: int):
    """The function of (x, kernel, stride) that is fastest on CPU for these shapes."""
    _, height, width, channels = shape
    size = kernel[0]
    largest = max(-(-side // stride) for side in (height, width))
    if size == 1 or largest <= LARGEST_PATCH_MAP:
        return convolve_patches
    is_narrow_stem = (size, stride, channels) == (7, 2, 3) and kernel[-1] <= WIDEST_FOLDED_STEM
    if is_narrow_stem and height % stride == 0 and width % FOLD == 0:
        return convolve_folded
    return convolve_directly


def convolve_directly(x: Array, kernel: Array, stride: int) -> Array:
    """XLA's convolution."""
    pad = (kernel.shape[0] - 1) // 2
    return _convolve(x, kernel, strides=(stride, stride), padding=((pad, pad), (pad, pad)))


def _convolve(x: Array, kernel: Array, strides, padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolve_patches(x: Array, kernel: Array, stride: int) -> Array:
    """The k * k shifted maps side by side, times the kernel as a matrix; equal to rounding."""
    k, _, channels, features = kernel.shape
    n, height, width, _ = x.shape
    pad = (k - 1) // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = -(-height // stride), -(-width // stride)
    shifted = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(k)
        for j in range(k)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, k * k * channels)
    out = patches @ kernel.reshape(k * k * channels, features)
    return out.reshape(n, rows, columns, features)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_folded(x: Array, kernel: Array, stride: int) -> Array:
    """FOLD columns as channels of one, so that few input channels still fill vector registers.

    The reshapes move nothing. The kernel is wider for it (3 * FOLD columns, zero beyond its own k),
    once per output column of a block. Needs stride to divide FOLD, FOLD to divide W, stride to
    divide H, and k // 2 <= FOLD. Gradients are XLA's, which are faster unfolded.
    """
    n, height, width, channels = x.shape
    k, _, _, features = kernel.shape
    pad, outputs = (k - 1) // 2, FOLD // stride
    starts = [FOLD + stride * output - pad for output in range(outputs)]
    widened = [
        jnp.pad(kernel, ((0, 0), (start, 3 * FOLD - k - start), (0, 0), (0, 0))) for start in starts
    ]
    kernel = jnp.stack(widened, axis=-2).reshape(k, 3, FOLD * channels, outputs * features)
    x = x.reshape(n, height, width // FOLD, FOLD * channels)
    out = _convolve(x, kernel, strides=(stride, 1), padding=((pad, pad), (1, 1)))
    return out.reshape(n, height // stride, width // stride, features)


def _folded_forward(x: Array, kernel: Array, stride: int):
    return convolve_folded(x, kernel, stride), (x, kernel)


def _folded_backward(stride: int, residuals: tuple[Array, Array], cotangent: Array):
    _, pull = jax.vjp(lambda x, kernel: convolve_directly(x, kernel, stride), *residuals)
    return pull(cotangent)


convolve_folded.defvjp(_folded_forward, _folded_backward)
