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
from mcl_jax.data.decode import DecodeError, Repair, decode
from mcl_jax.data.loader_settings import LoaderSettings, check_at_least
from mcl_jax.data.quiet_opencv import quiet_opencv
from mcl_jax.data.record import Source

# Records tried in place of an unreadable one; after them the canvas stays black. Without a limit a
# data set in which everything is broken would be read n times.
_REPLACEMENT_TRIES = 16


def batches(
    source: Source, settings: LoaderSettings, *, seed: int, start_step: int, shuffle: bool
) -> BatchIterator:
    """This process's part of the batches of steps start_step, start_step + 1, ... for ever.

    A source smaller than the batch is allowed, with a warning: images then repeat within a batch,
    and a contrastive loss takes the repeats for negatives.

    Args:
      source: random access to encoded images.
      settings: of the loader.
      seed: of the order, 0..2**32-1; together with the step it decides every batch.
      start_step: first step to give, in steps of B images since the beginning of training.
      shuffle: False keeps the source's order in every epoch.

    Returns:
      An iterator and context manager of dicts: 'image' uint8 [b, C, C, 3], 'extent' int32 [b, 2]
      (height, width in px), 'label' int32 [b] (-1: none), 'index' int64 [b] (in the source),
      'valid' bool [b], 'repair' uint8 [b] (see `decode.Repair`). At an unreadable image valid is
      False, 'index' its own, and image, extent and label are those of the next readable record of
      the source.

    Raises:
      UserError: for a negative step; from the iterator, too many unreadable images.

    Example:
      source = open_source("scenes", "train", None)
      with batches(source, settings, seed=0, start_step=0, shuffle=True) as stream:
          batch = next(stream)
    """
    check_at_least("start_step", start_step, 0)
    if len(source) < settings.batch_size:
        logging.warning(
            "the data set has %d images, fewer than one batch of %d: images repeat within a batch, "
            "and a contrastive loss takes the repeats for other images",
            len(source),
            settings.batch_size,
        )
    order = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        order = order.shuffle()
    blocks = order.repeat().batch(settings.local_batch_size, drop_remainder=True)
    blocks = blocks.map(_Load(source, settings.canvas_size))

    def open_after(count: int) -> Iterator[Batch]:
        first = (start_step + count) * settings.process_count + settings.process_index
        return _iterate(blocks[first :: settings.process_count], settings)

    return BatchIterator(open_after, source, settings)


def evaluation_batches(source: Source, settings: LoaderSettings) -> BatchIterator:
    """One ordered pass over the source; items as in `batches`.

    Every process gets ceil(n / B) batches. The last ones are padded with rows of zeros whose index
    and label are -1; `valid` is False on these and on unreadable rows.
    """
    rows = -(-len(source) // settings.batch_size) * settings.batch_size
    blocks = grain.MapDataset.range(rows).batch(settings.local_batch_size)
    blocks = blocks.map(_Load(source, settings.canvas_size))

    def open_after(count: int) -> Iterator[Batch]:
        first = count * settings.process_count + settings.process_index
        return _iterate(blocks[first :: settings.process_count], settings)

    return BatchIterator(open_after, source, settings)


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
            "repair": np.zeros(rows, np.uint8),
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
                decoded = decode(record.data, self._size, out=batch["image"][row])
            except (DecodeError, OSError):
                continue
            batch["extent"][row] = decoded.extent
            batch["label"][row] = record.label
            batch["valid"][row] = attempt == 0
            batch["repair"][row] = decoded.repair if attempt == 0 else Repair.NONE
            return


def _iterate(blocks: grain.MapDataset, settings: LoaderSettings) -> Iterator[Batch]:
    """Grain's iterator over whole batches: the same batches for any workers and threads."""
    threads = settings.threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
    dataset = blocks.to_iter_dataset(options)
    if settings.workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads its own absl flags before spawning; a program without absl.app never
            # parses.
            flags.FLAGS.mark_as_parsed()
        workers_options = grain.MultiprocessingOptions(num_workers=settings.workers)
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
