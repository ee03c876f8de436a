"""The train step: one pure function of (state, batch)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mcl_jax import accumulation, sharding
from mcl_jax.objectives.base import Objective
from mcl_jax.optimizer import Schedule
from mcl_jax.state import TrainState

Array = jax.Array


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    seed: Array,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    lr: Schedule,
    ema: Schedule,
    axis_name: sharding.AxisName,
    micro_batches: int,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on one device's images inside shard_map; everything returned is replicated.

    `seed` is an argument, not a constant, so that runs that differ in it share a compiled step.
    """
    device = jax.lax.axis_index(axis_name)
    params = sharding.device_local(state.params, axis_name)
    if micro_batches == 1:
        inputs = objective.inputs(seed, state.step, batch, device)
        loss_fn = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, outcome), grads = loss_fn(params, state, inputs, axis_name)
        outcome = accumulation.merged(outcome)
    else:
        (loss, outcome), grads = accumulation.value_and_grad(
            params, state, batch, seed, objective, axis_name, micro_batches
        )
    grads, loss, metrics = jax.lax.pmean((grads, loss, outcome.metrics), axis_name)
    return apply_gradients(state, grads, outcome, optimizer, lr, ema, metrics | {"loss": loss})


def apply_gradients(
    state: TrainState,
    grads: Any,
    outcome: Any,
    optimizer: optax.GradientTransformation,
    lr: Schedule,
    ema: Schedule,
    metrics: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
    """Optimizer step, then the target's EMA: t <- m t + (1 - m) online, of parameters only."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    target, schedules = {}, {"lr": lr(state.step)}
    if state.target_params:  # supervised objectives have no target network
        m = schedules["ema"] = ema(state.step)
        target = jax.tree.map(
            lambda old, new: m.astype(old.dtype) * old + (1 - m).astype(old.dtype) * new,
            state.target_params,
            params["encoder"],
        )
    metrics = metrics | schedules
    metrics |= {
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
    }
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=outcome.batch_stats,
        target_params=target,
        target_batch_stats=outcome.target_batch_stats,
        opt_state=opt_state,
        memory=outcome.memory,
    )
    return new_state, jax.tree.map(jnp.asarray, metrics)
