"""Everything a step reads and writes, as one pytree."""

from typing import Any

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """Replicated state of a run.

    Attributes:
      step: int32 scalar, number of finished steps.
      params: {'encoder': {...}, 'predictor': {...}} float32.
      batch_stats: running BN statistics of the online network, same paths.
      target_params: the EMA of params['encoder'].
      target_batch_stats: the target's own running statistics (not averaged: design section 3).
      opt_state: optax state.
      memory: what an objective needs beyond parameters (queues); {} for MCL.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    target_params: Any
    target_batch_stats: Any
    opt_state: Any
    memory: Any
