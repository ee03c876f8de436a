"""How fast a run goes, and how much of that time it waits for data."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Throughput:
    """Rates between readings; steps run ahead on the device, so read only what has finished.

    Args:
      batch_size: images of all devices per step.
      step: finished steps at the start.
    """

    def __init__(self, batch_size: int, step: int):
        self._batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        """Forgets the time so far, e.g. after an evaluation."""
        self._step, self._since, self._waited = step, time.monotonic(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of all rates."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    @contextlib.contextmanager
    def waiting(self, results: Any) -> Iterator[None]:
        """Counts the time inside as waiting for data, unless the devices computed all the while.

        Args:
          results: arrays of the step before, which may still be computed; {} before the first.
        """
        start = time.monotonic()
        yield
        if all(array.is_ready() for array in jax.tree.leaves(results)):
            self._waited += time.monotonic() - start

    def read(self, step: int) -> dict[str, float]:
        """{'images_per_s', 'data_wait'} since the last reading.

        `data_wait` is the share of the time in which data may have kept the devices waiting.
        """
        seconds = max(time.monotonic() - self._since, 1e-9)
        images = (step - self._step) * self._batch_size
        values = {"images_per_s": images / seconds, "data_wait": self._waited / seconds}
        self.restart(step)
        return values
