"""Labeled images as arrays, decoded as they are needed: what the probe trains and tests on.

Shapes: B images of a batch, H their side in px, N boxes of an image (padded); boxes are float [4]
(ymin, xmin, ymax, xmax) in px.
"""

import collections
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from mcl_jax.data.decode import DecodeError, decode_to_canvas
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.boxed_sources import BoxedSource
from mcl_jax.keys import Purpose, key_for

# Boxes are padded to a power of two from here on: few shapes to compile for.
_FEWEST_BOXES = 8


class Truth(NamedTuple):
    """Boxes float32 [B, N, 4] in px, labels int32 [B, N] with -1 for padding, and ignored bool
    [B, N]: neither learned from nor judged by (COCO's crowds, VOC's difficult objects)."""

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class BoxedImages(NamedTuple):
    """Images uint8 [B, H, H, 3] (zeros below and right of the image), their valid (height, width)
    int32 [B, 2], and their boxes."""

    images: np.ndarray
    extents: np.ndarray
    truth: Truth


class _Decoded(NamedTuple):
    """One image: uint8 [H, H, 3], int32 [2], and its boxes without padding."""

    image: np.ndarray
    extent: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


@dataclass
class BoxedSet:
    """Some images of a source, fitted to a square at the top left and never enlarged.

    Decoded images are kept if all of the set fits in `cache_bytes`; otherwise they are read from
    disk each time. An unreadable image stands as a black one without boxes, with a warning.

    Attributes:
      source: where they come from.
      rows: which of them, in order.
      image_size: H in px.
      cache_bytes: of memory for decoded images.
      max_unreadable: share of the set, in 0..1; more unreadable images stop the program.
      unreadable: names of those that could not be read so far.
    """

    source: BoxedSource
    rows: Sequence[int]
    image_size: int
    cache_bytes: int
    max_unreadable: float
    unreadable: dict[str, str] = field(default_factory=dict)
    _kept: dict[int, _Decoded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def first(self, count: int | None, seed: int) -> "BoxedSet":
        """A label budget: `count` images of this set; None: all of them.

        Budgets of one seed are nested: each is the beginning of one order, the set's own for seed 0
        and a random one for every other seed.

        Raises:
          UserError: the set is smaller, or count is not positive.
        """
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise UserError(f"a budget of {count} labeled images: the set has {len(self)}")
        rows = np.asarray(self.rows)
        if seed:
            order = jax.random.permutation(key_for(seed, 0, 0, Purpose.LABEL_BUDGET), len(rows))
            rows = rows[np.asarray(order)]
        return replace(self, rows=rows[:count].tolist())

    def read(self, positions: Iterable[int]) -> BoxedImages:
        """The images at these positions of the set.

        Raises:
          UserError: too many images cannot be read.
        """
        decoded = [self._decoded(self.rows[position]) for position in positions]
        columns = zip(*(d[2:] for d in decoded), strict=True)
        boxes, labels, ignored = columns
        return BoxedImages(
            np.stack([d.image for d in decoded]),
            np.stack([d.extent for d in decoded]),
            padded(boxes, labels, ignored),
        )

    def _decoded(self, row: int) -> _Decoded:
        if row in self._kept:
            return self._kept[row]
        decoded = self._decode(row)
        if len(self.rows) * self.image_size**2 * 3 <= self.cache_bytes:
            self._kept[row] = decoded
        return decoded

    def _decode(self, row: int) -> _Decoded:
        size, name = self.image_size, f"image {row}"
        image = np.zeros((size, size, 3), np.uint8)
        try:
            record = self.source[row]
            name = record.name
            _, extent = decode_to_canvas(record.data, size, out=image)
        except (DecodeError, OSError) as error:
            self._count_unreadable(name, error)
            none = np.zeros(0)
            full = np.full(2, size, np.int32)
            return _Decoded(
                image,
                full,
                boxes=none.reshape(0, 4),
                labels=none.astype(int),
                ignored=none.astype(bool),
            )
        extent = np.array(extent, np.int32)
        boxes = (record.boxes * np.tile(extent, 2)).astype(np.float32)
        # One box or more may be smaller than a float can tell from nothing: it teaches nothing.
        real = (boxes[:, 2:] > boxes[:, :2]).all(-1)
        return _Decoded(
            image,
            extent,
            boxes=boxes[real],
            labels=record.labels[real],
            ignored=record.ignored[real],
        )

    def _count_unreadable(self, name: str, error: Exception) -> None:
        if name not in self.unreadable:
            self.unreadable[name] = str(error)
            logging.warning("unreadable image %s: %s", name, error)
        if len(self.unreadable) > self.max_unreadable * len(self.rows):
            raise UserError(
                f"{len(self.unreadable)} of {len(self.rows)} images cannot be read, more than the "
                f"share of {self.max_unreadable} allowed (data.max_unreadable_share): {name}, "
                f"{error}"
            )


def padded(
    boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], ignored: Sequence[np.ndarray]
) -> Truth:
    """Per image [k, 4], [k], [k] -> `Truth` with N the next power of two."""
    longest = max(_FEWEST_BOXES, *map(len, labels))
    count = 1 << (longest - 1).bit_length()
    truth = Truth(
        np.zeros((len(labels), count, 4), np.float32),
        np.full((len(labels), count), -1, np.int32),
        np.zeros((len(labels), count), bool),
    )
    for i, row in enumerate(zip(boxes, labels, ignored, strict=True)):
        for array, values in zip(truth, row, strict=True):
            array[i, : len(values)] = values
    return truth


def joined(parts: Sequence[Truth]) -> Truth:
    """The images of several batches behind each other."""
    images = [
        [rows[labels >= 0] for rows in (boxes, labels, ignored)]
        for part in parts
        for boxes, labels, ignored in zip(*part, strict=True)
    ]
    return padded(*zip(*images, strict=True))


def read_ahead(load: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """`map(load, items)`, computed by threads while the caller is busy; in order."""
    items = iter(items)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: collections.deque[Future] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
