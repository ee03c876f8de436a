"""Convolution and linear layers with torch's padding and the method's initializers.

Shapes: x [N, H, W, C] or [N, C]; kernels HWIO (convolution) and [in, out] (linear).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax.models.convolution import convolve
from mcl_jax.models.norm import MOMENTS, BatchNorm, Pool
from mcl_jax.sharding import AxisName

Array = jax.Array

# Initializers of design section 3, as torch defines them (gain sqrt(2) for a following ReLU).
kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@dataclass(frozen=True)
class Context:
    """What every layer of one application shares.

    Attributes:
      norm_groups: sizes of the norm groups, in the order of the updates. The images of a norm group
        are normalized together, and apart from all others of the batch.
      train: batch statistics (True) or running statistics (False).
    """

    norm_groups: tuple[int, ...]
    train: bool


@dataclass(frozen=True)
class Numerics:
    """How a network computes: `dtype` of activations, BN constants, and the synchronized axis.

    `remat` recomputes every residual block in the backward pass, keeping its input alone.
    """

    dtype: jnp.dtype
    bn_momentum: float
    bn_epsilon: float
    axis_name: AxisName | None
    remat: bool = False

    def block(self, cls: type[nn.Module]) -> type[nn.Module]:
        """A block class, called as block(x, context), as this network runs it."""
        if not self.remat:
            return cls
        keep = jax.checkpoint_policies.save_only_these_names(MOMENTS)
        return nn.remat(cls, static_argnums=(2,), policy=keep)

    def norm(
        self, name: str, *, affine: bool = True, relu: bool = False, pool: Pool | None = None
    ) -> BatchNorm:
        return BatchNorm(
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            affine=affine,
            relu=relu,
            pool=pool,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
        )


class ConvNorm(nn.Module):
    """Convolution without bias -> BatchNorm -> optional ReLU and max-pool; `kernel` and `norm`."""

    features: int
    numerics: Numerics
    kernel_size: int = 3
    stride: int = 1
    relu: bool = True
    pool: Pool | None = None
    kernel_init: Callable = kaiming_fan_in

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        """[N, H, W, C] -> [N, H/stride, W/stride, features], before the pool."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = convolve(x.astype(self.numerics.dtype), kernel, self.stride)
        norm = self.numerics.norm("norm", relu=self.relu, pool=self.pool)
        return norm(x, context.norm_groups, train=context.train)


class Linear(nn.Module):
    """torch.nn.Linear: x @ kernel + bias; names `kernel` [in, out] and `bias` [out]."""

    features: int
    dtype: jnp.dtype
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def upsample_nearest(x: Array) -> Array:
    """[N, H, W, C] -> [N, 2H, 2W, C], every pixel repeated (F.interpolate(mode='nearest'))."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


def by_side(x: Array, sides: int, start: int, stop: int | None = None) -> Array:
    """Rows start:stop of every side of a side-major batch [sides * n, ...].

    Slices of the batch itself: splitting its axis in two moves the whole batch in a TPU's memory,
    where the sides' number of canvases is no multiple of eight.
    """
    n = x.shape[0] // sides
    stop = n if stop is None else stop
    if (start, stop) == (0, n):
        return x
    return jnp.concatenate([x[side * n + start : side * n + stop] for side in range(sides)])


def norm_group_sizes(sides: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Norm groups of a side-major batch in torch's order: all of side q, then all of side k."""
    return tuple(sizes) * sides
