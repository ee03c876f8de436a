"""How images are read and put into batches: the settings that every pass over a source shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcl_jax.errors import UserError


@dataclass(frozen=True)
class LoaderSettings:
    """The loader of one process. B: global batch, P: processes, C: canvas side.

    Attributes:
      canvas_size: C in px.
      batch_size: B in images, over all processes.
      process_index, process_count: which part of each global batch is ours.
      workers: spawned decoding processes; 0 decodes in this process. With workers the program's
        entry must be guarded by `if __name__ == '__main__'`, and a container needs room in /dev/shm
        for two batches per worker.
      threads: decoding threads in each of these processes; 0 decodes on demand. Each thread makes a
        whole batch, so about max(threads, 1) batches are in memory per process.
      max_unreadable_share: in 0..1; more unreadable images than this stop the run.
      unreadable_grace: images seen (per process) before that share is judged; of a smaller data
        set, as many as it has.

    Raises:
      UserError: a value out of its range, or a batch that does not divide over the processes.

    Example:
      >>> LoaderSettings(
      ...     canvas_size=64,
      ...     batch_size=8,
      ...     process_index=0,
      ...     process_count=1,
      ...     workers=0,
      ...     threads=1,
      ...     max_unreadable_share=0.01,
      ...     unreadable_grace=100,
      ... ).local_batch_size
      8
    """

    canvas_size: int
    batch_size: int
    process_index: int
    process_count: int
    workers: int
    threads: int
    max_unreadable_share: float
    unreadable_grace: int

    def __post_init__(self):
        least = {"canvas_size": 1, "batch_size": 1, "workers": 0, "threads": 0}
        for name, low in least.items():
            check_at_least(name, getattr(self, name), low)
        if self.batch_size % self.process_count:
            raise UserError(
                f"batch_size {self.batch_size} does not divide over {self.process_count} "
                f"processes; use a multiple of {self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise UserError(
                f"process_index {self.process_index} is not in 0..{self.process_count - 1}"
            )
        if not 0 <= self.max_unreadable_share <= 1:
            raise UserError(
                f"max_unreadable_share is {self.max_unreadable_share}; it must be in 0..1"
            )

    @property
    def local_batch_size(self) -> int:
        """b = B / P, images of this process."""
        return self.batch_size // self.process_count


def of_this_process(data: Mapping[str, Any], batch_size: int) -> LoaderSettings:
    """The loader that a configuration's section `data` describes, on this process.

    Args:
      data: the section; units stand in configs/base.py.
      batch_size: images of all devices together.

    Raises:
      UserError: as `LoaderSettings`.
    """
    import jax  # here: decoding workers read this module, and have no use for JAX

    return LoaderSettings(
        canvas_size=data["canvas_size"],
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data["workers"],
        threads=data["threads"],
        max_unreadable_share=data["max_unreadable_share"],
        unreadable_grace=data["unreadable_grace"],
    )


def check_at_least(name: str, value: int, least: int) -> None:
    """UserError where a value is below the least that works."""
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}")
