"""Batches as the training loop takes them: unreadable images counted, dead workers replaced."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mcl_jax.data.decode import DecodeError, Repair, decode_to_canvas
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.data.quiet_opencv import quiet_opencv
from mcl_jax.data.record import Source
from mcl_jax.errors import UserError

_NAMES_SHOWN = 3
_WORKER_STARTS = 3  # without a single batch in between

Batch = dict[str, np.ndarray]


class BatchIterator:
    """Batches of a pipeline, counting what could not be read; close it, or use it in `with`.

    A decoding worker that dies (killed for memory, say) costs a warning and a restart of the
    workers: where a batch begins is arithmetic, so none is lost or given twice.

    Attributes:
      seen: images given so far (padding excluded).
      unreadable: how many of them were unreadable.
      repaired: kind -> which images (indices in the source) were decoded with a repair.
    """

    def __init__(
        self,
        open_after: Callable[[int], Iterator[Batch]],
        source: Source,
        settings: LoaderSettings,
    ):
        """
        Args:
          open_after: the batches that follow so many.
          source: what they are made of; an unreadable image is named from it.
          settings: how many unreadable images are too many.
        """
        self._opencv = contextlib.ExitStack()
        self._opencv.enter_context(quiet_opencv())
        self._open_after = open_after
        self._batches = open_after(0)
        self._count = 0  # of the batches given out
        self._source = source
        self._settings = settings
        self._bad_names: dict[int, str] = {}
        self.seen = 0
        self.unreadable = 0
        self.repaired: dict[Repair, set[int]] = {}

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        """The next step's batch.

        Raises:
          UserError: too large a share was unreadable, or the workers keep dying.
        """
        batch = self._next()
        real = batch["index"] >= 0
        bad = batch["index"][real & ~batch["valid"]]
        self.seen += int(real.sum())
        self.unreadable += len(bad)
        for index in bad.tolist():
            self._name_once(index)
        for row in np.flatnonzero(batch["repair"]).tolist():
            self._count_repair(Repair(batch["repair"][row]), int(batch["index"][row]))
        self._judge()
        return batch

    def _next(self) -> Batch:
        for _ in range(_WORKER_STARTS):
            try:
                batch = next(self._batches)
            except RuntimeError as error:
                if "Worker process" not in str(error):  # grain's words for one that died
                    raise
                logging.warning("a decoding worker died; the workers are started again: %s", error)
                self._batches.close()
                self._batches = self._open_after(self._count)
            else:
                self._count += 1
                return batch
        raise UserError(
            f"decoding workers died {_WORKER_STARTS} times in a row (killed for memory, or /dev/shm "
            "full?); lower data.workers, or set it to 0 to decode in threads"
        )

    def _name_once(self, index: int) -> None:
        if index not in self._bad_names:
            self._bad_names[index], reason = _diagnose(self._source, index)
            logging.warning("unreadable image %s: %s", self._bad_names[index], reason)

    def _count_repair(self, repair: Repair, index: int) -> None:
        """Names the first image of a kind; the count is told at the end."""
        if repair not in self.repaired:
            self.repaired[repair] = set()
            name, _ = _diagnose(self._source, index)
            logging.warning("%s: %s; others are counted, not named", name, repair.words)
        self.repaired[repair].add(index)

    def _judge(self) -> None:
        most = self._settings.max_unreadable_share
        grace = min(self._settings.unreadable_grace, len(self._source))
        if self.seen < grace or self.unreadable <= most * self.seen:
            return
        names = list(self._bad_names.values())
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        share = self.unreadable / self.seen
        raise UserError(
            f"{self.unreadable} of {self.seen} images ({share:.1%}) are unreadable, more than the "
            f"{most:.1%} allowed: {', '.join(names[:_NAMES_SHOWN])}{more}; mend or "
            "remove them, or raise data.max_unreadable_share"
        )

    def close(self) -> None:
        """Stop threads and workers, tell how many images were repaired; safe to call twice."""
        for repair, indices in self.repaired.items():
            if len(indices) > 1:
                logging.warning("%d images: %s", len(indices), repair.words)
        self.repaired.clear()
        self._batches.close()
        self._opencv.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


def _diagnose(source: Source, index: int) -> tuple[str, str]:
    """(name, reason) of an unreadable record, read once more since workers send only its index.

    Raises:
      UserError: the folder that it was in is gone.
    """
    name = f"record {index}"
    try:
        record = source[index]
        name = record.name
        decode_to_canvas(record.data, 1)
        reason = "readable on a second try"
    except DecodeError as error:
        reason = str(error)
    except OSError as error:
        name, reason = str(error.filename or name), error.strerror or str(error)
        folder = os.path.dirname(name)
        if isinstance(error, FileNotFoundError) and folder and not os.path.isdir(folder):
            raise UserError(
                f"{name} cannot be read: the folder {folder} is not there any more. Put it back, then "
                "run the same command again"
            ) from error
    return name, reason
