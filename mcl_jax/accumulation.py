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
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax import sharding
from mcl_jax.objectives.base import NegativesOfStep, Objective, Outcome
from mcl_jax.sharding import DATA_AXIS
from mcl_jax.state import TrainState

if TYPE_CHECKING:
    from mcl_jax.program import Program

Array = jax.Array


class MicroBatches(NamedTuple):
    """A device's batch in parts.

    Attributes:
      rows: (shards int32 [n], fields [n, b, ...]), what `jax.lax.scan` goes through.
      inputs: one row -> the objective's inputs.
    """

    rows: tuple[Array, dict[str, Array]]
    inputs: Callable[[tuple[Array, dict[str, Array]]], Any]


def value_and_grad(
    params: Any, state: TrainState, batch: dict[str, Array], seed: Array, run: "Program"
) -> tuple[tuple[Array, Outcome], Any]:
    """((loss, outcome), gradients) of this device, as jax.value_and_grad(objective.loss) gives.

    Args:
      params: marked as this device's own.
      batch: fields [n * b, ...] of this device.
      state, seed, run: as in `train_step`.
    """
    objective, n = run.objective, run.micro_batches
    shards = jax.lax.axis_index(DATA_AXIS) * n + jnp.arange(n)
    fields = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)

    def inputs(row: tuple[Array, dict[str, Array]]) -> Any:
        shard, images = row
        return objective.inputs(seed, state.step, images, shard)

    compute = _with_all_negatives if objective.negatives_of_step else _one_by_one
    return compute(params, state, MicroBatches((shards, fields), inputs), objective)


def _one_by_one(
    params: Any, state: TrainState, parts: MicroBatches, objective: Objective
) -> tuple[tuple[Array, Outcome], Any]:
    loss_fn = jax.value_and_grad(objective.loss, has_aux=True)

    def micro_step(carry: tuple[TrainState, Any], row: Any) -> Any:
        state, total = carry
        (loss, outcome), grads = loss_fn(params, state, parts.inputs(row), DATA_AXIS)
        outcome = merged(outcome)
        return (_after(state, outcome), jax.tree.map(jnp.add, total, grads)), (
            loss,
            outcome.metrics,
        )

    start = (state, _zeros(state.params))
    (state, total), (losses, metrics) = jax.lax.scan(micro_step, start, parts.rows)
    n = losses.shape[0]
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return (losses.mean(), _outcome(state, metrics)), jax.tree.map(lambda g: g / n, total)


def _with_all_negatives(
    params: Any, state: TrainState, parts: MicroBatches, objective: NegativesOfStep
) -> tuple[tuple[Array, Outcome], Any]:
    """Two passes, see above."""

    def forward(state: TrainState, row: Any) -> Any:
        inputs = parts.inputs(row)
        targets, target_stats = objective.targets(state, inputs, DATA_AXIS)
        predictions, stats = objective.predict(params, state, inputs)
        after = _after(state, merged(Outcome(stats, target_stats, memory=state.memory, metrics={})))
        return after, (predictions, targets, objective.labels(inputs, DATA_AXIS))

    after, (predictions, targets, labels) = jax.lax.scan(forward, state, parts.rows)
    # image numbers of the whole step: micro-batch by micro-batch
    images = objective.images_per_device * jax.lax.axis_size(DATA_AXIS)
    numbers = jnp.arange(len(parts.rows[0]))[:, None, None] * images
    targets, labels = jax.tree.map(_joined, (targets, [x + numbers for x in labels]))

    def loss_of(predictions: Any) -> tuple[Array, dict[str, Array]]:
        return objective.contrast(jax.tree.map(_joined, predictions), targets, labels)

    (loss, metrics), cotangents = jax.value_and_grad(loss_of, has_aux=True)(predictions)

    def backward(total: Any, row_and_cotangent: Any) -> Any:
        row, cotangent = row_and_cotangent
        inputs = parts.inputs(row)
        _, pull = jax.vjp(lambda params: objective.predict(params, state, inputs)[0], params)
        return jax.tree.map(jnp.add, total, *pull(cotangent)), None

    grads, _ = jax.lax.scan(backward, _zeros(state.params), (parts.rows, cotangents))
    return (loss, _outcome(after, metrics)), grads


def _joined(rows: Array) -> Array:
    """[n, V, m, ...] -> [V, n * m, ...]."""
    rows = rows.swapaxes(0, 1)
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _zeros(params: Any) -> Any:
    return sharding.device_local(jax.tree.map(jnp.zeros_like, params), DATA_AXIS)


def merged(outcome: Outcome) -> Outcome:
    """Its running statistics become the mean over device groups, see `sharding.merge_device_groups`."""
    both = (outcome.batch_stats, outcome.target_batch_stats)
    online, target = sharding.merge_device_groups(both)
    return outcome._replace(batch_stats=online, target_batch_stats=target)


def _after(state: TrainState, outcome: Outcome) -> TrainState:
    """What the next micro-batch starts from."""
    return state.replace(
        batch_stats=outcome.batch_stats,
        target_batch_stats=outcome.target_batch_stats,
        memory=outcome.memory,
    )


def _outcome(state: TrainState, metrics: dict[str, Array]) -> Outcome:
    return Outcome(
        state.batch_stats, state.target_batch_stats, memory=state.memory, metrics=metrics
    )
