"""How fast a run goes, and how much of that time it waits for data."""

import contextlib
import time
from collections.abc import Iterator


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
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def read(self, step: int) -> dict[str, float]:
        """{'images_per_s', 'data_wait' (share of the time)} since the last reading."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        images = (step - self._step) * self._batch_size
        values = {"images_per_s": images / seconds, "data_wait": self._waited / seconds}
        self.restart(step)
        return values
