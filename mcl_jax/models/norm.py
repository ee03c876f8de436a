"""Batch normalization over the global batch, several norm groups in one call.

A *norm group* is what is normalized together, apart from the rest of the batch.

Shapes: x [N, ..., C]; N is the sum of the norm groups' sizes; G norm groups; C channels.

Why not flax's: the method needs torch's unbiased running variance (design section 3; it tells on
small batches), statistics of each montage side (and, in the shared head, of each level) on their
own although all of them run as one batch, one all-reduce per call and direction instead of one per
group and moment, and as few passes over memory as there can be: a step on a TPU is bound by them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mcl_jax.sharding import AxisName

Array = jax.Array
Pool = Callable[[Array], Array]

# What a rematerialized block keeps of its norms, so that recomputing it costs no all-reduce.
MOMENTS = "batch_norm_moments"


def group_moments(
    x: Array, groups: Sequence[int], shift: Array, axis_name: AxisName | None
) -> tuple[Array, Array]:
    """Mean and biased variance of every group over all devices.

    Moments are merged by one all-reduce of (mean, mean of squares), both about `shift`. With the
    running mean as shift little cancels. A 16-bit x is read once, as the convolution writes it: its
    own rounding is larger by far than what float32 loses. A wider one is read twice, first for this
    device's means and then for squares about them, so that nothing cancels at all.

    Args:
      x: [N, ..., C]; moments are in `shift`'s type.
      groups: sizes that sum to N; every device must use the same ones.
      shift: float32 [C], the same on every device.
      axis_name: mapped axis to average over; None for one device.

    Returns:
      (mean, variance), both [G, C].
    """
    one_pass = jnp.finfo(x.dtype).bits < 32
    x = x.astype(shift.dtype)
    if one_pass:
        offset, square = _group_means(x - shift, groups), _group_means((x - shift) ** 2, groups)
    else:
        mean = _group_means(x, groups)
        offset = mean - shift
        square = _group_means((x - _rows(mean, groups, x.ndim)) ** 2, groups) + offset**2
    moments = jnp.stack([offset, square])
    if axis_name is not None:
        moments = jax.lax.pmean(moments, axis_name)
    moments = checkpoint_name(moments, MOMENTS)
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


@dataclass(frozen=True)
class Norming:
    """How `batch_normalize` normalizes: its arguments that are no arrays.

    Attributes:
      groups, axis_name: see `group_moments`.
      epsilon: added to the variance.
      relu: whether max(0, .) follows.
      pool: a max-pool that follows; None: none. It is done first, so that less has to be
        normalized: with no negative scale, norm and ReLU change nothing about which value is the
        largest.
    """

    groups: tuple[int, ...]
    epsilon: float
    axis_name: AxisName | None = None
    relu: bool = False
    pool: Pool | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_normalize(
    norming: Norming,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mean: Array,
    var: Array,
) -> Array:
    """Normalizes every group by its own statistics, whose share in the gradient is included.

    Autodiff would keep float32 copies of the activations for the backward pass, and read them
    several times. What is kept here is x itself, in its own type, and [G, C] numbers.

    Args:
      x: [N, ..., C] in any float type; arithmetic is in that of the statistics.
      scale, bias: [C]; None: 1 and 0.
      mean, var: [G, C], of `group_moments` of this x: its gradient relies on that, and none flows
        into them.
    """
    pooled = x if norming.pool is None else norming.pool(x)
    return _normalized(norming, pooled, scale, bias, mean=mean, var=var).astype(x.dtype)


def _normalized(norming: Norming, x, scale, bias, *, mean, var):
    """The formula of `batch_normalize`, for any statistics and without the pool; in their type."""
    out = _affine(_centered(norming, x, mean, var), scale, bias)
    return nn.relu(out) if norming.relu else out


def _centered(norming: Norming, x: Array, mean: Array, var: Array) -> Array:
    """(x - mean) / std of every group, in the statistics' type."""
    factor = _rows(jax.lax.rsqrt(var + norming.epsilon), norming.groups, x.ndim)
    return (x.astype(mean.dtype) - _rows(mean, norming.groups, x.ndim)) * factor


def _affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    return x if scale is None else x * scale + bias


def _forward(norming: Norming, *arrays):
    return batch_normalize(norming, *arrays), arrays


def _backward(norming: Norming, residuals, cotangent):
    """dx = scale / std * (g - mean(g) - z * mean(g z)), z = (x - mean) / std, g behind the ReLU.

    The two means are over the group on all devices: one all-reduce. Gradients of scale and bias are
    this device's share, as all gradients of the step are. A pool's g is zero where it took nothing.
    """
    x, scale, bias, mean, var = residuals
    groups, pool = norming.groups, norming.pool
    pooled = x if pool is None else pool(x)
    z = _centered(norming, pooled, mean, var)
    g = cotangent.astype(mean.dtype)
    if norming.relu:
        g = jnp.where(_affine(z, scale, bias) > 0, g, 0)
    means = jnp.stack([_group_means(g, groups), _group_means(g * z, groups)])
    if pool is not None:
        means = means * (pooled.size / x.size)
        (g,) = jax.vjp(pool, x)[1](g.astype(x.dtype))
        z = _centered(norming, x, mean, var)
    d_scale = d_bias = None
    if scale is not None:
        counts = (np.array(groups) * (x.size // (x.shape[0] * x.shape[-1])))[:, None]
        sums = (means * counts.astype(mean.dtype)).sum(1)
        d_bias, d_scale = sums[0].astype(bias.dtype), sums[1].astype(scale.dtype)
    if norming.axis_name is not None:
        means = jax.lax.pmean(means, norming.axis_name)
    factor = jax.lax.rsqrt(var + norming.epsilon) * (1.0 if scale is None else scale)
    dx = g - _rows(means[0], groups, x.ndim) - z * _rows(means[1], groups, x.ndim)
    dx = (_rows(factor, groups, x.ndim) * dx).astype(x.dtype)
    return dx, d_scale, d_bias, jnp.zeros_like(mean), jnp.zeros_like(var)


batch_normalize.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm / SyncBatchNorm with independent groups, and the ReLU behind it.

    In training every group is normalized by its own statistics, and the running statistics are
    updated once per group in the given order, exactly as if the groups had been passed one after
    another: r <- m r + (1 - m) s. The running variance takes the unbiased estimate, as torch does.

    Attributes:
      momentum: share of the old running value kept (torch's 0.1 is 0.9 here).
      epsilon: added to the variance.
      affine: whether scale and bias exist (names `scale`, `bias`).
      relu: whether max(0, .) follows.
      pool: a max-pool behind that, e.g. pooling.max_pool; None: none.
      axis_name: mapped axis over which the statistics are synchronized.
      dtype: type of the output; statistics and parameters are float32.
    """

    momentum: float
    epsilon: float
    affine: bool = True
    relu: bool = False
    pool: Pool | None = None
    axis_name: AxisName | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, groups: Sequence[int], *, train: bool) -> Array:
        """Normalizes x [N, ..., C] over all axes but the last; sum(groups) must be N."""
        channels = x.shape[-1]
        if sum(groups) != x.shape[0]:
            raise ValueError(f"groups {tuple(groups)} sum to {sum(groups)}, batch is {x.shape[0]}")
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = bias = None
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        statistics_dtype = jnp.promote_types(x.dtype, jnp.float32)
        if not train:
            mean, var = (v.value[None] for v in (running_mean, running_var))
            norming = Norming((x.shape[0],), self.epsilon, relu=self.relu)
            x = _normalized(norming, x.astype(statistics_dtype), scale, bias, mean=mean, var=var)
            x = x if self.pool is None else self.pool(x)
            return x.astype(self.dtype)

        axis_name = None if self.is_initializing() else self.axis_name
        x, groups = x.astype(self.dtype), tuple(groups)
        shift = running_mean.value.astype(statistics_dtype)
        mean, var = group_moments(
            jax.lax.stop_gradient(x), groups, shift=shift, axis_name=axis_name
        )
        if not self.is_initializing():
            self._update(
                running_mean,
                running_var,
                mean=mean,
                var=var,
                positions=x.size // channels,
                groups=groups,
            )
        if self.pool is not None and self.affine:
            # `batch_normalize` with a pool takes no negative scale. Its sign goes into x instead, in the
            # pass that writes x.
            signs = jnp.where(scale < 0, -1.0, 1.0)
            x, scale, mean = x * signs.astype(x.dtype), scale * signs, mean * signs
        norming = Norming(groups, self.epsilon, axis_name, relu=self.relu, pool=self.pool)
        return batch_normalize(norming, x, scale, bias, mean=mean, var=var)

    def _update(self, running_mean, running_var, mean, var, positions, groups):
        """G updates r <- m r + (1 - m) s in a row, multiplied out."""
        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        counts = np.array(groups) * (positions // sum(groups)) * devices
        unbiased = var * (counts / np.maximum(counts - 1, 1))[:, None].astype(var.dtype)
        later = self.momentum ** np.arange(len(groups) - 1, -1, -1)
        shares = ((1.0 - self.momentum) * later)[:, None].astype(var.dtype)
        keep = self.momentum ** len(groups)
        for running, of_batch in ((running_mean, mean), (running_var, unbiased)):
            updated = keep * running.value + (shares * of_batch).sum(0)
            running.value = updated.astype(
                running.value.dtype
            )  # also where activations are float64
