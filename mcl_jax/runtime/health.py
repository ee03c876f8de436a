"""Stops a run that can no longer learn, and says why."""

import math
from collections.abc import Mapping
from typing import Any


class TrainingStopped(RuntimeError):
    """NaN or collapse; the message explains what was seen and what to try."""


class HealthCheck:
    """Looks at every logged step's metrics.

    Args:
      settings: config.log: collapse_share (of 1/sqrt(D)) and collapse_patience (logs in a row).
      dimensions: D of the embeddings; evenly spread features have a std of 1/sqrt(D).
    """

    def __init__(self, settings: Mapping[str, Any], dimensions: int):
        self._even = 1 / math.sqrt(dimensions)
        self._floor = settings["collapse_share"] * self._even
        self._patience = settings["collapse_patience"]
        self._below = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Raises TrainingStopped on a non-finite loss or gradient, or a lasting collapse."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise TrainingStopped(
                    f"{name} is {values[name]} at step {step}: lower optimizer.base_lr or lengthen "
                    "optimizer.warmup_epochs; the newest checkpoint is from before"
                )
        stds = [value for name, value in values.items() if name.startswith("std/")]
        spread = min(stds, default=math.inf)  # supervised features have labels to keep them apart
        self._below = self._below + 1 if spread < self._floor else 0
        if self._below >= self._patience:
            raise TrainingStopped(
                f"the features collapsed: std {spread:.2e} per dimension at step {step}, below "
                f"{self._floor:.2e} for {self._below} logs in a row (evenly spread features have "
                f"{self._even:.2e}). Lower optimizer.base_lr or check that the images differ"
            )
