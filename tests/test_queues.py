"""Queues against a list simulation, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mcl_jax import sharding
from mcl_jax.objectives import queues

SIZE, DIMENSIONS = 20, 3


def simulated(queue, batches):
    """The oldest row leaves, the new one takes its place."""
    rows, pointer = [row for row in np.asarray(queue)], 0
    for batch in batches:
        for key in batch:
            rows[pointer] = key
            pointer = (pointer + 1) % len(rows)
    return np.stack(rows), pointer


@pytest.mark.parametrize("devices", [1, 8])
def test_contents_after_several_wrap_arounds(devices):
    batch, steps = 16, 7  # 20 is no multiple of 16; 112 keys go round five times
    start = queues.create_like(
        jax.random.key(0), SIZE, {"a": np.zeros((1, DIMENSIONS)), "b": np.zeros((1, DIMENSIONS))}
    )
    keys = np.random.default_rng(0).normal(size=(steps, 2, batch, DIMENSIONS)).astype(np.float32)

    def step(queue, pointer, a, b):
        axis_name = None if devices == 1 else sharding.DATA_AXIS
        return queues.enqueue(queue, pointer, keys={"a": a, "b": b}, axis_name=axis_name)

    if devices > 1:  # out_specs P() with shard_map's check: the content is proven equal everywhere
        specs = (P(), P(), P(sharding.DATA_AXIS), P(sharding.DATA_AXIS))
        step = jax.shard_map(step, mesh=sharding.make_mesh(), in_specs=specs, out_specs=P())
    step = jax.jit(step)
    queue, pointer = start, jnp.zeros((), jnp.int32)
    for a, b in keys:
        queue, pointer = step(queue, pointer, a, b)
    for i, name in enumerate(("a", "b")):
        expected, end = simulated(start[name], keys[:, i])
        np.testing.assert_array_equal(queue[name], expected)
        assert int(pointer) == end
        for shard in queue[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, expected)
    assert len(queue["a"].addressable_shards) == devices


def test_a_new_queue_has_unit_rows_of_its_own():
    first, second = queues.create_like(jax.random.key(0), SIZE, [np.zeros((2, 5))] * 2)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    assert first.shape == (SIZE, 5) and first.dtype == jnp.float32
    assert np.abs(first @ second.T).max() < 0.99999


def test_keys_get_no_gradient():
    queue = queues.create(jax.random.key(0), SIZE, DIMENSIONS)

    def total(keys):
        return queues.enqueue(queue, jnp.int32(18), keys=keys, axis_name=None)[0].sum()

    assert not np.any(jax.grad(total)(jnp.ones((4, DIMENSIONS))))
