"""The signature that every objective shares, so that one train step serves them all."""

from typing import Any, NamedTuple, Protocol

import jax

from mcl_jax.state import TrainState

Array = jax.Array


class Variables(NamedTuple):
    """What an objective starts from."""

    params: Any  # trained; params['encoder'] is what gets exported (and averaged, if at all)
    batch_stats: Any
    memory: Any  # queues and the like; {} if none


class Outcome(NamedTuple):
    """What a loss computes besides its value; equal on all devices but for `metrics`."""

    batch_stats: Any
    target_batch_stats: Any
    memory: Any
    metrics: dict[str, Array]  # scalars of this device's share, to be averaged


class Objective(Protocol):
    """Static description of a method; all numbers that vary live in the arguments."""

    def init(self, key: Array) -> Variables:
        """Fresh parameters, running statistics and memory."""

    def inputs(self, seed: int, step: Array, batch: dict[str, Array], device: Array) -> Any:
        """Turns the device's raw images into network inputs; everything random happens here."""

    def loss(
        self, params: Any, state: TrainState, inputs: Any, axis_name: str | None
    ) -> tuple[Array, Outcome]:
        """Mean loss over this device's share. Only `params` receives gradients."""
