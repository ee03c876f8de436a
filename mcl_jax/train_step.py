"""The train step: one pure function of (state, batch)."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from mcl_jax import accumulation, sharding
from mcl_jax.objectives.base import Outcome
from mcl_jax.state import TrainState

if TYPE_CHECKING:
    from mcl_jax.program import Program

Array = jax.Array


def train_step(
    state: TrainState, batch: dict[str, Array], seed: Array, run: "Program"
) -> tuple[TrainState, dict[str, Array]]:
    """One step on one device's images inside shard_map; everything returned is replicated.

    Args:
      state: of the step before.
      batch: this device's images, the fields that the objective reads.
      seed: uint32 scalar of the run: an argument, not a constant, so that runs that differ in it
        share a compiled step.
      run: objective, optimizer and schedules.

    Returns:
      (state, metrics): float32 scalars by name, averaged over devices.
    """
    params = sharding.device_local(state.params, sharding.DATA_AXIS)
    if run.micro_batches == 1:
        device = jax.lax.axis_index(sharding.DATA_AXIS)
        inputs = run.objective.inputs(seed, state.step, batch, device)
        loss_fn = jax.value_and_grad(run.objective.loss, has_aux=True)
        (loss, outcome), grads = loss_fn(params, state, inputs, sharding.DATA_AXIS)
        outcome = accumulation.merged(outcome)
    else:
        (loss, outcome), grads = accumulation.value_and_grad(
            params, state, batch=batch, seed=seed, run=run
        )
    grads, loss, metrics = jax.lax.pmean((grads, loss, outcome.metrics), sharding.DATA_AXIS)
    state, norms = apply_gradients(state, grads, outcome=outcome, run=run)
    return state, jax.tree.map(jnp.asarray, metrics | {"loss": loss} | norms)


def apply_gradients(
    state: TrainState, grads: Any, outcome: Outcome, run: "Program"
) -> tuple[TrainState, dict[str, Array]]:
    """Optimizer step, then the target's EMA: t <- m t + (1 - m) online, of parameters only.

    Returns:
      (state, metrics): 'lr', 'grad_norm', 'param_norm' and, with a target network, 'ema'.
    """
    updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    target, metrics = {}, {"lr": run.lr(state.step)}
    if state.target_params:  # supervised objectives have no target network
        m = metrics["ema"] = run.ema(state.step)
        target = jax.tree.map(
            lambda old, new: m.astype(old.dtype) * old + (1 - m).astype(old.dtype) * new,
            state.target_params,
            params["encoder"],
        )
    metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=outcome.batch_stats,
        target_params=target,
        target_batch_stats=outcome.target_batch_stats,
        opt_state=opt_state,
        memory=outcome.memory,
    )
    return new_state, metrics
