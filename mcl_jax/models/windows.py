"""Cutting of maps into attention windows, and what tokens of a window are to each other.

Shapes: maps [N, H, W, C]; windows [N*n, L, C] with n windows a map and L = window^2 tokens a
window, both row-major.

Liu et al., 2021 (arXiv 2103.14030), section 3.2.
"""

import jax
import numpy as np

Array = jax.Array

# Added to the logits of pairs that were not neighbors before the shift, as torchvision does;
# exp(-100) is 0 in float32 beside any logit that a network produces.
MASKED = -100.0


def split_windows(x: Array, window: int) -> Array:
    """[N, H, W, C] -> [N*n, L, C]; H and W are multiples of the window."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // window, window, width // window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def join_windows(x: Array, window: int, height: int, width: int) -> Array:
    """The inverse of `split_windows`."""
    channels = x.shape[-1]
    x = x.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of a window's tokens: int64 [L, L]."""
    grid = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"))
    positions = grid.reshape(2, -1)
    offsets = positions[:, :, None] - positions[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


def shift_mask(height: int, width: int, window: int, shifts: tuple[int, int]) -> np.ndarray:
    """What to add to the logits of a rolled map: float32 [n, L, L], 0 or MASKED.

    A window at the edge of a rolled map holds tokens from opposite edges of the original one; only
    tokens of the same region attend to each other.
    """
    regions = np.zeros((height, width), np.int32)
    for axis, (size, shift) in enumerate(zip((height, width), shifts, strict=True)):
        place = np.arange(size)
        region = (place >= size - window).astype(np.int32) + (place >= size - shift)
        region = region if shift else np.zeros_like(region)
        regions += 3**axis * (region[:, None] if axis == 0 else region[None, :])
    n_h, n_w = height // window, width // window
    regions = regions.reshape(n_h, window, n_w, window).transpose(0, 2, 1, 3)
    regions = regions.reshape(n_h * n_w, window * window)
    same = regions[:, :, None] == regions[:, None, :]
    return np.where(same, 0.0, MASKED).astype(np.float32)
