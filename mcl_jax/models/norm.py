"""Batch normalisation over the global batch, several independent groups in one call.

Shapes: x [N, ..., C]; N is the sum of the group sizes; G groups; C channels.

Why not flax's: the method needs torch's unbiased running variance (design section 3: exactness on
small batches), statistics of each montage side (and, in the shared head, of each level) on their
own although all of them run as one batch, and one all-reduce per call instead of one per group
and moment.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def group_moments(
    x: Array, groups: Sequence[int], shift: Array, axis_name: str | None
) -> tuple[Array, Array]:
    """Mean and biased variance of every group over all devices.

    Each device computes its own two-pass moments; devices are merged by one all-reduce of
    (mean - shift, variance + (mean - shift)^2), Chan's formula about `shift`. With the running
    mean as shift nothing cancels, so float32 stays exact without a second all-reduce.

    Args:
      x: float32 [N, ..., C].
      groups: sizes that sum to N; every device must use the same ones.
      shift: float32 [C], the same on every device.
      axis_name: mapped axis to average over; None for one device.

    Returns:
      (mean, variance), both float32 [G, C].
    """
    mean = _group_means(x, groups)
    var = _group_means(jnp.square(x - _rows(mean, groups, x.ndim)), groups)
    if axis_name is None:
        return mean, var
    offset = mean - shift
    moments = jax.lax.pmean(jnp.stack([offset, var + jnp.square(offset)]), axis_name)
    return moments[0] + shift, jnp.maximum(moments[1] - jnp.square(moments[0]), 0.0)


def _group_means(x: Array, groups: Sequence[int]) -> Array:
    """[N, ..., C] -> [G, C]. Rows first: slicing [N, C] is cheap, slicing feature maps is not."""
    rows = x.mean(tuple(range(1, x.ndim - 1)))
    if len(set(groups)) == 1:  # far fewer operations to compile, in most layers
        return rows.reshape(len(groups), -1, rows.shape[-1]).mean(1)
    ends = np.cumsum(groups)
    return jnp.stack([rows[end - n : end].mean(0) for end, n in zip(ends, groups, strict=True)])


def _rows(values: Array, groups: Sequence[int], ndim: int) -> Array:
    """[G, C] -> [N, 1, ..., C]: every row of a group gets the group's value."""
    shape = (1,) * (ndim - 2) + values.shape[-1:]
    if len(set(groups)) == 1:
        repeated = jnp.broadcast_to(values[:, None], (len(groups), groups[0], values.shape[-1]))
        return repeated.reshape(-1, *shape)
    return jnp.concatenate(
        [
            jnp.broadcast_to(v.reshape(1, *shape), (n, *shape))
            for v, n in zip(values, groups, strict=True)
        ]
    )


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm / SyncBatchNorm with independent groups.

    In training every group is normalised by its own statistics, and the running statistics are
    updated once per group in the given order, exactly as if the groups had been passed one after
    another: r <- m r + (1 - m) s. The running variance takes the unbiased estimate, as torch does.

    Attributes:
      momentum: share of the old running value kept (torch's 0.1 is 0.9 here).
      epsilon: added to the variance.
      affine: whether scale and bias exist (names `scale`, `bias`).
      axis_name: mapped axis over which the statistics are synchronised.
      dtype: type of the output; statistics and parameters are float32.
    """

    momentum: float
    epsilon: float
    affine: bool = True
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, groups: Sequence[int], train: bool) -> Array:
        """Normalises x [N, ..., C] over all axes but the last; sum(groups) must be N."""
        channels = x.shape[-1]
        if sum(groups) != x.shape[0]:
            raise ValueError(f"groups {tuple(groups)} sum to {sum(groups)}, batch is {x.shape[0]}")
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        else:
            scale, bias = jnp.ones(channels), jnp.zeros(channels)

        statistics_dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(statistics_dtype)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return ((x - running_mean.value) * factor + bias).astype(self.dtype)

        axis_name = None if self.is_initializing() else self.axis_name
        mean, var = group_moments(x, groups, jax.lax.stop_gradient(running_mean.value), axis_name)
        if not self.is_initializing():
            devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
            counts = np.array(groups) * (x.size // (x.shape[0] * channels)) * devices
            unbiased = var * (counts / np.maximum(counts - 1, 1))[:, None].astype(var.dtype)
            # G updates r <- m r + (1 - m) s in a row, multiplied out
            later = self.momentum ** np.arange(len(groups) - 1, -1, -1)
            shares = ((1.0 - self.momentum) * later)[:, None].astype(var.dtype)
            keep = self.momentum ** len(groups)
            running_mean.value = keep * running_mean.value + (shares * mean).sum(0)
            running_var.value = keep * running_var.value + (shares * unbiased).sum(0)
        factor = _rows(scale * jax.lax.rsqrt(var + self.epsilon), groups, x.ndim)
        return ((x - _rows(mean, groups, x.ndim)) * factor + bias).astype(self.dtype)
