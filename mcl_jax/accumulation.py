"""Gradient accumulation: a batch in several micro-batches, one after the other.

What stays as in one piece, and what does not: gradients are the mean over micro-batches, and one
optimizer and EMA step follows. Batch normalization sees one micro-batch at a time (over all
devices), and running statistics are updated once for each. The negatives of a contrastive loss are
those of the micro-batch, unless `loss.negatives` is 'step': then all features of the batch are
computed first, without keeping activations, the loss and its gradient by the features follow from
all of them, and a second pass carries that gradient into the network micro-batch by micro-batch
(Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): one
forward pass more, the loss of the whole batch, the memory of a micro-batch.

Shapes: n micro-batches of b images on this device; shards are numbered along the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mcl_jax import sharding
from mcl_jax.objectives.base import Objective, Outcome
from mcl_jax.state import TrainState

Array = jax.Array


def value_and_grad(
    params: Any,
    state: TrainState,
    batch: dict[str, Array],
    seed: Array,
    objective: Objective,
    axis_name: sharding.AxisName,
    micro_batches: int,
) -> tuple[tuple[Array, Outcome], Any]:
    """((loss, outcome), gradients) of this device, as jax.value_and_grad(objective.loss) gives.

    Args:
      params: marked as this device's own.
      batch: fields [n * b, ...] of this device.
      others: as in `train_step`.
    """
    first = jax.lax.axis_index(axis_name) * micro_batches
    shards = first + jnp.arange(micro_batches)
    rows = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)

    def inputs_of(part: tuple[Array, dict[str, Array]]) -> Any:
        shard, images = part
        return objective.inputs(seed, state.step, images, shard)

    run = _with_all_negatives if objective.negatives_of_step else _one_by_one
    return run(params, state, (shards, rows), inputs_of, objective, axis_name)


def _one_by_one(
    params: Any,
    state: TrainState,
    parts: Any,
    inputs_of: Callable[[Any], Any],
    objective: Objective,
    axis_name: sharding.AxisName,
) -> tuple[tuple[Array, Outcome], Any]:
    loss_fn = jax.value_and_grad(objective.loss, has_aux=True)

    def micro_step(carry: tuple[TrainState, Any], part: Any) -> Any:
        state, total = carry
        (loss, outcome), grads = loss_fn(params, state, inputs_of(part), axis_name)
        outcome = merged(outcome)
        return (_after(state, outcome), jax.tree.map(jnp.add, total, grads)), (
            loss,
            outcome.metrics,
        )

    start = (state, _zeros(state.params, axis_name))
    (state, total), (losses, metrics) = jax.lax.scan(micro_step, start, parts)
    n = losses.shape[0]
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return (losses.mean(), _outcome(state, metrics)), jax.tree.map(lambda g: g / n, total)


def _with_all_negatives(
    params: Any,
    state: TrainState,
    parts: Any,
    inputs_of: Callable[[Any], Any],
    objective: Objective,
    axis_name: sharding.AxisName,
) -> tuple[tuple[Array, Outcome], Any]:
    """Two passes; `objective` offers `predict`, `targets`, `labels` and `contrast` (see MCL)."""

    def forward(state: TrainState, part: Any) -> Any:
        inputs = inputs_of(part)
        targets, target_stats = objective.targets(state, inputs, axis_name)
        predictions, stats = objective.predict(params, state, inputs)
        after = _after(state, merged(Outcome(stats, target_stats, state.memory, {})))
        return after, (predictions, targets, objective.labels(inputs, axis_name))

    after, (predictions, targets, labels) = jax.lax.scan(forward, state, parts)
    # image numbers of the whole step: micro-batch by micro-batch
    images = objective.images_per_device * jax.lax.axis_size(axis_name)
    numbers = jnp.arange(parts[0].shape[0])[:, None, None] * images
    targets, labels = jax.tree.map(_joined, (targets, [x + numbers for x in labels]))

    def loss_of(predictions: Any) -> tuple[Array, dict[str, Array]]:
        return objective.contrast(jax.tree.map(_joined, predictions), targets, labels)

    (loss, metrics), cotangents = jax.value_and_grad(loss_of, has_aux=True)(predictions)

    def backward(total: Any, part_and_cotangent: Any) -> Any:
        part, cotangent = part_and_cotangent
        inputs = inputs_of(part)
        _, pull = jax.vjp(lambda params: objective.predict(params, state, inputs)[0], params)
        return jax.tree.map(jnp.add, total, *pull(cotangent)), None

    start = _zeros(state.params, axis_name)
    grads, _ = jax.lax.scan(backward, start, (parts, cotangents))
    return (loss, _outcome(after, metrics)), grads


def _joined(rows: Array) -> Array:
    """[n, V, m, ...] -> [V, n * m, ...]."""
    rows = rows.swapaxes(0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _zeros(params: Any, axis_name: str) -> Any:
    return sharding.device_local(jax.tree.map(jnp.zeros_like, params), axis_name)


def merged(outcome: Outcome) -> Outcome:
    """With the running statistics of all BatchNorm groups in one, see `sharding.merge_groups`."""
    both = (outcome.batch_stats, outcome.target_batch_stats)
    online, target = sharding.merge_groups(both)
    return outcome._replace(batch_stats=online, target_batch_stats=target)


def _after(state: TrainState, outcome: Outcome) -> TrainState:
    """What the next micro-batch starts from."""
    return state.replace(
        batch_stats=outcome.batch_stats,
        target_batch_stats=outcome.target_batch_stats,
        memory=outcome.memory,
    )


def _outcome(state: TrainState, metrics: dict[str, Array]) -> Outcome:
    return Outcome(state.batch_stats, state.target_batch_stats, state.memory, metrics)
