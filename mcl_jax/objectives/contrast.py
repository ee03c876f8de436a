"""Queries against keys and a queue, and the normalization that keeps queries and keys apart.

Shapes: b images of this device, B of all D devices; queries and keys [b, D] unit rows; queue
[K, D] unit rows; order int32 [b], a permutation of this device's images.

Why the choice of normalization matters (He et al., 2020, section 3.3): with batch statistics an
output depends on all images it was normalized with. A query and its positive key come from the
same batch, the queue's negatives from earlier ones. If a query and its key are normalized with the
same images, both show the same trace of these images. The network can then lower the loss by
comparing traces instead of images. Two ways out:

  'shuffle' (MoCo's): statistics are those of a few images only, `norm_group`, and a key is
    normalized with other images than its query. Every device permutes its images, sends an equal
    share of them to every device, normalizes what it received in norm groups, and sends the
    features back. Several norm groups on one device do the same without any communication.
  'sync': statistics of the whole batch, for queries and keys alike. The trace is shared, but the
    more images it averages over, the less it says. Simple, and right for large batches.

Under 'shuffle' a device's running statistics are updated once per norm group, so they forget
faster the more of them it has; at the end of a step they are averaged over devices.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from mcl_jax import losses
from mcl_jax.errors import UserError
from mcl_jax.models.layers import Context, Numerics
from mcl_jax.sharding import AxisName

Array = jax.Array
# encode(batch, context) -> (features, running statistics); a batch is a pytree of [b, ...].
Encode = Callable[[Any, Context], tuple[Any, Any]]


@dataclass(frozen=True)
class QueueSettings:
    """The keys of `config.moco`, which DetCo shares.

    Attributes:
      queue_size: K, keys per queue; at least the global batch, no multiple of it needed.
      temperature: tau.
      norm: 'sync' or 'shuffle', see above.
      norm_group: size of a norm group in images under 'shuffle' (MoCo: 32, one GPU's); divides b.
    """

    queue_size: int
    temperature: float
    norm: str
    norm_group: int

    @property
    def shuffles(self) -> bool:
        return self.norm == "shuffle"

    def numerics(self, numerics: Numerics) -> Numerics:
        """The network's numerics: under 'shuffle' nothing is synchronized."""
        return replace(numerics, axis_name=None) if self.shuffles else numerics

    def context(self, images: int) -> Context:
        """Training mode for b images: one norm group, or b / norm_group of them under 'shuffle'.

        Raises:
          UserError: if b is no multiple of norm_group.
        """
        if not self.shuffles:
            return Context((images,), train=True)
        groups, rest = divmod(images, self.norm_group)
        if rest or not groups:
            raise UserError(
                f"moco.norm_group {self.norm_group} does not divide the {images} images of a "
                f"device; {_nearest_divisor(images, self.norm_group)} would"
            )
        return Context((self.norm_group,) * groups, train=True)


def _nearest_divisor(number: int, target: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - target))


def info_nce(
    queries: Array, keys: Array, queue: Array, temperature: float
) -> tuple[Array, dict[str, Array]]:
    """Mean cross-entropy of (1 + K)-way classification with label 0, the positive key.

    He et al., 2020, equation 1: -log exp(q.k/tau) / (exp(q.k/tau) + sum_j exp(q.queue_j/tau)).

    Args:
      queries: [b, D] L2-normalized; gradients flow.
      keys: [b, D] L2-normalized, row i shows the image of query i; gradients are stopped.
      queue: [K, D] L2-normalized; gradients are stopped.
      temperature: tau.

    Returns:
      (loss scalar, {'positive', 'negative': mean cosines, 'top1': share of queries whose key is
      nearer than everything in the queue}).
    """
    keys, queue = jax.lax.stop_gradient((keys, queue))
    positives = (queries * keys).sum(-1, keepdims=True)
    negatives = jnp.matmul(queries, queue.T, precision=jax.lax.Precision.HIGHEST)
    logits = jnp.concatenate([positives, negatives], axis=1) / temperature
    loss = (jax.nn.logsumexp(logits, axis=1) - logits[:, 0]).mean()
    metrics = {
        "positive": positives.mean(),
        "negative": negatives.mean(),
        "top1": (jnp.argmax(logits, axis=1) == 0).mean(),
    }
    return loss, metrics


def unit(features: Any) -> Any:
    """Every leaf [b, D] with rows of length 1 in float32."""
    return jax.tree.map(losses.unit_rows, features)


def encode_queries(
    encode: Encode, batch: Any, settings: QueueSettings, axis_name: AxisName | None
) -> tuple[Any, Any]:
    """(unit features of this device's images, running statistics equal on all devices)."""
    context = settings.context(jax.tree.leaves(batch)[0].shape[0])
    features, stats = encode(batch, context)
    return unit(features), synchronize(stats, settings, axis_name)


def encode_keys(
    encode: Encode, batch: Any, order: Array, settings: QueueSettings, axis_name: AxisName | None
) -> tuple[Any, Any]:
    """As `encode_queries`, for the key network: shuffled where asked for, and without gradients.

    Args:
      encode: of the target network.
      batch: pytree of [b, ...], this device's images and what belongs to them.
      order: int32 [b]; only 'shuffle' reads it.
      settings, axis_name: as everywhere.

    Returns:
      (unit features in the order of `batch`, running statistics equal on all devices).

    Raises:
      UserError: with 'shuffle', if b does not divide over the devices, or if the whole batch is one
        norm group: shuffling would change nothing.
    """
    if settings.shuffles:
        check_shuffle(jax.tree.leaves(batch)[0].shape[0], settings, axis_name)
        batch = jax.tree.map(lambda x: shuffle(x, order, axis_name), batch)
    features, stats = encode_queries(encode, batch, settings=settings, axis_name=axis_name)
    if settings.shuffles:
        features = jax.tree.map(lambda x: unshuffle(x, order, axis_name), features)
    return jax.lax.stop_gradient((features, stats))


def synchronize(stats: Any, settings: QueueSettings, axis_name: AxisName | None) -> Any:
    """Running statistics averaged over devices where each one made its own ('shuffle')."""
    if axis_name is None or not settings.shuffles:
        return stats
    return jax.lax.pmean(stats, axis_name)


def device_count(axis_name: AxisName | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def check_shuffle(images: int, settings: QueueSettings, axis_name: AxisName | None) -> None:
    """UserError with the numbers where `shuffle` cannot work on this many devices."""
    devices = device_count(axis_name)
    if images % devices:
        raise UserError(
            f"moco.norm 'shuffle' sends an equal share of a device's {images} images to each of "
            f"{devices} devices; {max(1, round(images / devices)) * devices} images per device "
            f"would do"
        )
    if images * devices == settings.norm_group:
        raise UserError(
            f"moco.norm_group {settings.norm_group} is the whole batch: shuffling within one group "
            f"changes no statistics; {_nearest_divisor(images, images // 2)} would do"
        )


def shuffle(rows: Array, order: Array, axis_name: AxisName | None) -> Array:
    """Permutes this device's rows [b, ...], then deals them out evenly to all devices.

    Afterwards neighboring rows come from different devices, so that every norm group
    holds images of as many devices as it has room for.
    """
    rows = rows[order]
    devices = device_count(axis_name)
    if devices == 1:
        return rows
    received = jax.lax.all_to_all(rows, axis_name, split_axis=0, concat_axis=0, tiled=True)
    by_source = received.reshape(devices, -1, *rows.shape[1:])
    return by_source.swapaxes(0, 1).reshape(rows.shape)


def unshuffle(rows: Array, order: Array, axis_name: AxisName | None) -> Array:
    """The inverse of `shuffle`: features [b, ...] back on their devices, in image order."""
    devices = device_count(axis_name)
    if devices > 1:
        by_source = rows.reshape(-1, devices, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
        rows = jax.lax.all_to_all(by_source, axis_name, split_axis=0, concat_axis=0, tiled=True)
    return rows[jnp.argsort(order)]
