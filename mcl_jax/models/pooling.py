"""The stem's max-pool, in the formulation that suits the platform.

Shapes: x [N, H, W, C] -> [N, ceil(H/2), ceil(W/2), C].

XLA's CPU backend turns the gradient of a pooling window into index arrays and a scatter: 172 maps of
32x32x16 take 74 ms of CPU time forward and backward, against 9 ms of comparisons here. TPU and GPU
programs keep XLA's own pooling.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax import sharding

Array = jax.Array


def max_pool(x: Array) -> Array:
    """torch.nn.MaxPool2d(3, stride=2, padding=1); of equal values the first takes the gradient."""
    return sharding.by_platform(x, cpu=max_pool_by_comparison, default=max_pool_by_windows)


def max_pool_by_windows(x: Array) -> Array:
    """XLA's pooling."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def max_pool_by_comparison(x: Array) -> Array:
    """Columns, then rows: so the first of equal values is the first in row-major order."""
    return _pool_axis(_pool_axis(x, 2), 1)


def _pool_axis(x: Array, axis: int) -> Array:
    """Largest of positions 2i - 1, 2i and 2i + 1 along one axis."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    along = [(0, 0, 0)] * x.ndim
    along[axis] = (0, x.shape[axis] % 2, 0)
    x = jax.lax.pad(x, lowest, along)
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    along[axis] = (1, -1, 0)
    return _first_largest(_first_largest(jax.lax.pad(odd, lowest, along), even), odd)


def _first_largest(first: Array, second: Array) -> Array:
    """The larger one, the first if equal, NaN if either is: `maximum` would halve the gradient."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)
