"""Stops a run that can no longer learn, and says why."""

import math
from collections.abc import Callable, Mapping
from typing import Any


class TrainingStopped(RuntimeError):
    """NaN or collapse; the message explains what was seen and what to try."""


class HealthCheck:
    """Looks at every logged step's metrics.

    Args:
      settings: config.log: collapse_share (of 1/sqrt(D)) and collapse_patience (logs in a row).
      dimensions: D of the embeddings; evenly spread features have a std of 1/sqrt(D).
      saved: returns the step of the newest checkpoint, None if there is none.

    A gradient of exactly 0 counts like a collapse: weights no longer learn, whatever the loss says.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        dimensions: int,
        saved: Callable[[], int | None] = lambda: None,
    ):
        self._saved = saved
        self._even = 1 / math.sqrt(dimensions)
        self._floor = settings["collapse_share"] * self._even
        self._patience = settings["collapse_patience"]
        self._below = 0
        self._without_gradient = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Raises TrainingStopped on a non-finite loss or gradient, or a lasting collapse."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                saved = self._saved()
                newest = f"the newest checkpoint is of step {saved}, from before"
                if saved is None:
                    newest = "no checkpoint was written before"
                raise TrainingStopped(
                    f"{name} is {values[name]} at step {step}: lower optimizer.base_lr or lengthen "
                    f"optimizer.warmup_epochs; {newest}"
                )
        self._check_gradient(step, values)
        stds = [value for name, value in values.items() if name.startswith("std/")]
        spread = min(stds, default=math.inf)  # supervised features have labels to keep them apart
        self._below = self._below + 1 if spread < self._floor else 0
        if self._below >= self._patience:
            raise TrainingStopped(
                f"the features collapsed: std {spread:.2e} per dimension at step {step}, below "
                f"{self._floor:.2e} for {self._below} logs in a row (evenly spread features have "
                f"{self._even:.2e}). Lower optimizer.base_lr or check that the images differ"
            )

    def _check_gradient(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to tell apart: one image against itself, images that are all alike."""
        self._without_gradient = self._without_gradient + 1 if values["grad_norm"] == 0 else 0
        if self._without_gradient >= self._patience:
            raise TrainingStopped(
                f"the gradient is exactly 0 at step {step}, for {self._without_gradient} logs in a row "
                f"(loss {values['loss']:.4g}): nothing is learned. Check that the images differ, that "
                "data.batch_size leaves images to compare with, and that no weight of the loss is 0"
            )
