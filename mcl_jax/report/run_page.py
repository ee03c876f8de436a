"""curves.png and card.html of a run, while it goes on and at its end."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import mcl_jax
from mcl_jax.report import card, metrics, plots
from mcl_jax.runtime.optional import optional
from mcl_jax.runtime.storage import Place


class RunPage:
    """Writes both files now and then, in a thread of its own, and once more at the end.

    Args:
      config: of the run, plain.
      workdir: where the metrics are and the files go.
      total_steps: of the run.
      every_s: s between two writings; 0: at the end alone. The page tells the browser to load it
        again as often.
    """

    def __init__(self, config: Mapping[str, Any], workdir: Place, total_steps: int, every_s: float):
        self._config, self._workdir, self._total = config, workdir, total_steps
        self._every_s, self._written = every_s, time.monotonic()
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def refresh(self) -> None:
        """Starts to write, if it is time and the last writing is over."""
        now = time.monotonic()
        if not self._every_s or now - self._written < self._every_s:
            return
        if self._writing is None or self._writing.done():
            self._written = now
            self._writing = self._pool.submit(self._write, self._every_s)

    def close(self) -> None:
        """The last writing: the page no longer loads itself."""
        self._pool.shutdown()
        self._write(0)

    def _write(self, refresh_s: float) -> None:
        with optional("curves.png and card.html"):
            self._write_both(refresh_s)

    def _write_both(self, refresh_s: float) -> None:
        lines = metrics.read(self._workdir)
        plots.curves(self._workdir / "curves.png", lines)
        step = max((line["step"] for line in lines), default=0)
        parts = card.run_parts(self._config, step, lines=lines, workdir=self._workdir)
        title = f"{self._config['method']} {self._config['model']['backbone']}"
        subtitle = f"mcl_jax {mcl_jax.__version__}, step {step:,} of {self._total:,}"
        if refresh_s:
            subtitle += f", running, written at {time.strftime('%H:%M:%S')}"
        card.write(
            self._workdir / card.FILE, card.page(title, subtitle, parts, refresh_s=refresh_s)
        )
