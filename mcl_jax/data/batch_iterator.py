"""Batches as the training loop takes them: unreadable images counted, dead workers replaced."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mcl_jax.data.decode import DecodeError, decode_to_canvas, quiet_opencv
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
    """

    def __init__(
        self,
        open_at: Callable[[int], Iterator[Batch]],
        source: Source,
        max_share: float,
        min_judged: int,
    ):
        if not 0 <= max_share <= 1:
            raise UserError(f"max_unreadable_share is {max_share}; it must be in 0..1")
        self._opencv = contextlib.ExitStack()
        self._opencv.enter_context(quiet_opencv())
        self._open_at = open_at  # after so many batches
        self._batches = open_at(0)
        self._given = 0
        self._source = source
        self._max_share = max_share
        self._min_judged = min_judged
        self._bad_names: dict[int, str] = {}
        self.seen = 0
        self.unreadable = 0

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
                self._batches = self._open_at(self._given)
            else:
                self._given += 1
                return batch
        raise UserError(
            f"decoding workers died {_WORKER_STARTS} times in a row (killed for memory, or /dev/shm "
            "full?); lower data.workers, or set it to 0 to decode in threads"
        )

    def _name_once(self, index: int) -> None:
        if index not in self._bad_names:
            self._bad_names[index], reason = _diagnose(self._source, index)
            logging.warning("unreadable image %s: %s", self._bad_names[index], reason)

    def _judge(self) -> None:
        if self.seen < self._min_judged or self.unreadable <= self._max_share * self.seen:
            return
        names = list(self._bad_names.values())
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        share = self.unreadable / self.seen
        raise UserError(
            f"{self.unreadable} of {self.seen} images ({share:.1%}) are unreadable, more than the "
            f"{self._max_share:.1%} allowed: {', '.join(names[:_NAMES_SHOWN])}{more}; mend or "
            "remove them, or raise data.max_unreadable_share"
        )

    def close(self) -> None:
        """Stop threads and workers; safe to call twice."""
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
