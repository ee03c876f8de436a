"""Encoded records -> shuffled, sharded, resumable batches of uint8 canvases.

Legend: B global batch, P processes, b = B/P images per process, C canvas side in px, n images in
the source.

One endless stream of record indices, shuffled anew each epoch by the seed, is cut into blocks of b;
process p takes blocks p, P + p, 2P + p, ... Hence the images of global step t are
stream[t*B:(t+1)*B] in this order for any P that divides B, and resuming at a step is arithmetic,
not replay. Epochs follow each other without a gap, so nothing is dropped at their ends; a batch may
hold images of two epochs.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from mcl_jax.data.batch_iterator import Batch, BatchIterator
from mcl_jax.data.decode import DecodeError, decode_to_canvas, quiet_opencv
from mcl_jax.data.record import Source
from mcl_jax.errors import UserError

# Records tried in place of an unreadable one before a black canvas stands in: a technical bound
# that keeps a wholly broken data set from being read n times over.
_REPLACEMENT_TRIES = 16


def batches(
    source: Source,
    *,
    canvas_size: int,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int,
    process_count: int,
    workers: int,
    threads: int,
    shuffle: bool,
    max_unreadable_share: float,
    min_images_judged: int = 64,
) -> "BatchIterator":
    """This process's part of the batches of steps start_step, start_step + 1, ... for ever.

    A source smaller than the batch is allowed, with a warning: images then repeat within a batch,
    and a contrastive loss takes the repeats for negatives.

    Args:
      source: random access to encoded images.
      canvas_size: C in px.
      batch_size: B in images, over all processes.
      seed: of the order, 0..2**32-1; together with the step it decides every batch.
      start_step: first step to give, in steps of B images since the beginning of training.
      process_index, process_count: which part of each global batch is ours.
      workers: spawned decoding processes; 0 decodes in this process. With workers the program's
        entry must be guarded by `if __name__ == '__main__'`, and a container needs room in /dev/shm
        for two batches per worker.
      threads: decoding threads in each of these processes; 0 decodes on demand. Each thread makes a
        whole batch, so about max(threads, 1) batches are in memory per process.
      shuffle: False keeps the source's order in every epoch.
      max_unreadable_share: in 0..1; more unreadable images than this stop the run.
      min_images_judged: the share is judged from this many images on (per process).

    Returns:
      An iterator and context manager of dicts: 'image' uint8 [b, C, C, 3], 'extent' int32 [b, 2]
      (height, width in px), 'label' int32 [b] (-1: none), 'index' int64 [b] (in the source),
      'valid' bool [b]. At an unreadable image valid is False, 'index' its own, and image, extent
      and label are those of the next readable record of the source.

    Raises:
      UserError: sizes that do not divide or are out of range; from the iterator, too many
        unreadable images.
    """
    local = _local_batch(batch_size, process_index, process_count)
    _check_at_least("canvas_size", canvas_size, 1)
    _check_at_least("start_step", start_step, 0)
    if len(source) < batch_size:
        logging.warning(
            "the data set has %d images, fewer than one batch of %d: images repeat within a batch, and "
            "a contrastive loss takes the repeats for other images",
            len(source),
            batch_size,
        )
    order = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        order = order.shuffle()
    blocks = order.repeat().batch(local, drop_remainder=True).map(_Load(source, canvas_size))

    def open_at(given: int) -> Iterator[Batch]:
        first = (start_step + given) * process_count + process_index
        return _iterate(blocks[first::process_count], workers, threads)

    return BatchIterator(open_at, source, max_unreadable_share, min_images_judged)


def evaluation_batches(
    source: Source,
    *,
    canvas_size: int,
    batch_size: int,
    process_index: int,
    process_count: int,
    workers: int,
    threads: int,
    max_unreadable_share: float,
    min_images_judged: int = 64,
) -> "BatchIterator":
    """One ordered pass over the source; arguments and items as in `batches`.

    Every process gets ceil(n / B) batches. The last ones are padded with rows of zeros whose index
    and label are -1; `valid` is False on these and on unreadable rows.
    """
    local = _local_batch(batch_size, process_index, process_count)
    _check_at_least("canvas_size", canvas_size, 1)
    rows = -(-len(source) // batch_size) * batch_size
    blocks = grain.MapDataset.range(rows).batch(local).map(_Load(source, canvas_size))

    def open_at(given: int) -> Iterator[Batch]:
        first = given * process_count + process_index
        return _iterate(blocks[first::process_count], workers, threads)

    return BatchIterator(open_at, source, max_unreadable_share, min_images_judged)


class _Load:
    """Indices int64 [b] -> a batch; picklable, never raises for a bad image.

    Images are decoded straight into the batch: stacking finished canvases would copy each once more.
    """

    def __init__(self, source: Source, canvas_size: int):
        self._source = source
        self._size = canvas_size

    def __call__(self, indices: np.ndarray) -> Batch:
        rows, size = len(indices), self._size
        batch = {
            "image": np.zeros((rows, size, size, 3), np.uint8),
            # A black canvas counts as fully covered, so that no crop of it divides by zero.
            "extent": np.full((rows, 2), size, np.int32),
            "label": np.full(rows, -1, np.int32),
            "index": np.full(rows, -1, np.int64),
            "valid": np.zeros(rows, np.bool_),
        }
        for row, index in enumerate(indices.tolist()):
            if index < len(self._source):  # The rest is padding.
                self._fill(batch, row, index)
        return batch

    def _fill(self, batch: Batch, row: int, index: int) -> None:
        count = len(self._source)
        batch["index"][row] = index
        for attempt in range(min(_REPLACEMENT_TRIES, count)):
            try:
                record = self._source[(index + attempt) % count]
                _, extent = decode_to_canvas(record.data, self._size, out=batch["image"][row])
            except (DecodeError, OSError):
                continue
            batch["extent"][row] = extent
            batch["label"][row] = record.label
            batch["valid"][row] = attempt == 0
            return


def _iterate(blocks: grain.MapDataset, workers: int, threads: int) -> Iterator[Batch]:
    """Grain's iterator over whole batches: the same batches for any workers and threads."""
    _check_at_least("workers", workers, 0)
    _check_at_least("threads", threads, 0)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
    dataset = blocks.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads its own absl flags before spawning; a program without absl.app never
            # parses.
            flags.FLAGS.mark_as_parsed()
        workers_options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(workers_options, worker_init_fn=_start_worker)
    return iter(dataset)


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Run in each worker: it decodes alone, and ends with its parent.

    A parent killed without warning would leave it waiting for ever.
    """
    del worker_index, worker_count
    quiet_opencv().__enter__()  # for as long as the worker lives

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _local_batch(batch_size: int, process_index: int, process_count: int) -> int:
    _check_at_least("batch_size", batch_size, 1)
    if batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} does not divide over {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index {process_index} is not in 0..{process_count - 1}")
    return batch_size // process_count


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}")
