"""Queues of past keys, the negatives of MoCo and DetCo (He et al., 2020, section 3.2).

Shapes: queue float32 [K, D] unit rows, oldest overwritten first; keys [b, D] of this device,
[B, D] of all devices in image order; pointer int32 scalar, the row written next.

Every device holds the whole queue and the same content: a queue of 65,536 x 128 takes 32 MiB,
and a sharded one would cost a collective in every loss to read it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mcl_jax import losses
from mcl_jax.sharding import AxisName

Array = jax.Array


def create(key: Array, size: int, dimensions: int) -> Array:
    """float32 [size, dimensions], random directions: normal rows scaled to unit length."""
    return losses.unit_rows(jax.random.normal(key, (size, dimensions), jnp.float32))


def create_like(key: Array, size: int, features: Any) -> Any:
    """One queue per leaf [N, D] of `features`, each from a key of its own."""
    leaves, structure = jax.tree.flatten(features)
    keys = jax.random.split(key, len(leaves))
    queues = [create(k, size, x.shape[-1]) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, queues)


def gather(rows: Array, axis_name: AxisName | None) -> Array:
    """[b, D] of each device -> [D_devices * b, D] in image order, provably equal on all devices.

    A sum over devices of zeros with this device's rows in their place: other than an all-gather,
    its result counts as replicated in shard_map's check. x + 0 is exact.
    """
    if axis_name is None:
        return rows
    b = rows.shape[0]
    everything = jnp.zeros((jax.lax.axis_size(axis_name) * b, *rows.shape[1:]), rows.dtype)
    start = jax.lax.axis_index(axis_name) * b
    placed = jax.lax.dynamic_update_slice_in_dim(everything, rows, start, axis=0)
    return jax.lax.psum(placed, axis_name)


def enqueue(
    queues: Any, pointer: Array, keys: Any, axis_name: AxisName | None
) -> tuple[Any, Array]:
    """Overwrites the oldest rows with this step's keys of all devices.

    Args:
      queues: pytree of [K, D].
      pointer: int32 scalar.
      keys: the same pytree of [b, D], this device's share.
      axis_name: mapped axis of the devices; None for one.

    Returns:
      (queues, pointer) after B = b * devices rows. Positions wrap modulo K, so K need not be a
      multiple of B.
    """
    rows = jax.tree.map(lambda x: gather(jax.lax.stop_gradient(x), axis_name), keys)
    size, batch = jax.tree.leaves(queues)[0].shape[0], jax.tree.leaves(rows)[0].shape[0]
    positions = (pointer + jnp.arange(batch, dtype=jnp.int32)) % size
    queues = jax.tree.map(
        lambda queue, new: queue.at[positions].set(new.astype(queue.dtype), unique_indices=True),
        queues,
        rows,
    )
    return queues, (pointer + batch) % size
