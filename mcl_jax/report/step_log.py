"""The metrics of steps: kept on the device until the next step runs, then written, shown, judged."""

import math
from typing import Any

import jax
from tqdm import tqdm

from mcl_jax.report.metrics import MetricWriter
from mcl_jax.report.throughput import Throughput
from mcl_jax.runtime.health import HealthCheck


class StepLog:
    """Two verbs: `keep` a step's metrics, `write` what is kept.

    Between the two the devices go on: fetching metrics at once would wait for their step.
    """

    def __init__(self, writer: MetricWriter, health: HealthCheck, meter: Throughput, bar: tqdm):
        self._writer, self._health, self._meter, self._bar = writer, health, meter, bar
        self._kept: tuple[int, Any] | None = None

    def keep(self, step: int, values: dict[str, jax.Array]) -> None:
        """Remembers float32 scalars by name, still on the device, of a step that was started."""
        self._kept = (step, values)

    def write(self) -> None:
        """Fetches what is kept, writes and shows it, and stops an unhealthy run; once.

        Raises:
          TrainingStopped: see `HealthCheck.check`.
        """
        if self._kept is None:
            return
        (step, arrays), self._kept = self._kept, None
        values = {name: float(value) for name, value in jax.device_get(arrays).items()}
        values |= self._meter.read(step)  # now that the step is known to have finished
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._writer.write(step, finite)
        loss, rate = values["loss"], values["images_per_s"]
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s", refresh=False)
        self._health.check(step, values)
