"""The metrics of steps: kept on the device until the next step runs, then written, shown, judged."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mcl_jax.report.metrics import MetricWriter
from mcl_jax.report.progress import Bar
from mcl_jax.report.run_page import RunPage
from mcl_jax.report.throughput import Throughput
from mcl_jax.runtime.health import HealthCheck

Callback = Callable[[int, dict[str, float]], None]  # (step, its metrics by name)


class StepLog:
    """Two verbs: `keep` a step's metrics, `write` what is kept.

    Between the two the devices go on: fetching metrics at once would wait for their step.
    """

    def __init__(
        self,
        writer: MetricWriter,
        page: RunPage | None,
        health: HealthCheck,
        meter: Throughput,
        bar: Bar,
        callbacks: Sequence[Callback] = (),
    ):
        self._writer, self._page, self._health = writer, page, health
        self._meter, self._bar, self._callbacks = meter, bar, callbacks
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
        speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        self._bar.set_postfix_str(f"loss {loss:.4f}, {speed} images/s", refresh=False)
        if self._page is not None:
            self._page.refresh()
        for callback in self._callbacks:
            callback(step, dict(values))
        self._health.check(step, values)
