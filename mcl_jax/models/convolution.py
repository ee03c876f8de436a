"""Convolution with torch's padding, in the formulation that suits platform and shape.

Shapes: x [N, H, W, C]; kernel HWIO [k, k, C, F]; out [N, H/stride, W/stride, F].

XLA's CPU convolutions run at 1-3 GFLOP/s on 2x2 maps, where the same sum as one matrix product
reaches tens (design section 5). Measured here on two cores, 172 maps of 2x2, 128 -> 128 channels:
44 ms against 2.3 ms forward. TPU and GPU programs are XLA's own convolution, untouched.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# px; the largest output map that runs as a matrix product on CPU. Above it XLA's is faster.
LARGEST_PATCH_MAP = 4


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """torch.nn.Conv2d without bias: padding (k - 1) // 2 on every side, never 'SAME'.

    'SAME' pads stride-2 convolutions on the right only and shifts every feature map.
    """
    kernel = kernel.astype(x.dtype)
    height, width = (-(-size // stride) for size in x.shape[1:3])
    if max(height, width) > LARGEST_PATCH_MAP:
        return convolve_directly(x, kernel, stride)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: convolve_patches(x, kernel, stride),
        default=lambda x, kernel: convolve_directly(x, kernel, stride),
    )


def convolve_directly(x: Array, kernel: Array, stride: int) -> Array:
    """XLA's convolution."""
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
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
