"""Statistics of instance sizes before and after the montage (paper Figure 5, appendix B.1).

Shapes: boxes float [m, 4] of one image: ymin, xmin, ymax, xmax as shares of its height and width;
sizes float [n] in px, the square root of a box's area; S levels, H canvas side in px.

The paper compares the scale of instances in COCO, "resized to (1333, 800)", and in ImageNet,
resized to 224 x 224, and gives standard deviations of 188.4 and 56.7. We read the first as the
usual detection rule: shorter side to 800 px unless the longer one would pass 1333 px. The second
must come from ImageNet's localization boxes, as whole images of one size do not deviate at all; a
data set without boxes counts here as one instance per image.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mcl_jax import montage
from mcl_jax.data.record import Source
from mcl_jax.data.sources import TfdsSource
from mcl_jax.errors import UserError
from mcl_jax.report.progress import Bar
from mcl_jax.settings.records import fill

BEFORE, AFTER = "before", "montage"


class Boxes(NamedTuple):
    """All instances of a data set; without boxes every image is one.

    Attributes:
      shares: float [n] share of the image's area that the instance covers.
      extents: int [n, 2] (height, width) in px of its image as stored.
      unreadable: images left out because their header could not be read.
    """

    shares: np.ndarray
    extents: np.ndarray
    unreadable: int


def detection_scale(extents: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """Factor by which a detector enlarges images: shorter side to `shorter` px, at most `longer`.

    Args:
      extents: [n, 2] (height, width) in px.
      shorter, longer: in px.

    Returns:
      float [n].
    """
    return np.minimum(shorter / extents.min(1), longer / extents.max(1))


def before_sizes(boxes: Boxes, shorter: int, longer: int) -> np.ndarray:
    """Sizes [n] in px after a detector's resizing, aspect kept; see `detection_scale`."""
    pixels = boxes.shares * boxes.extents.prod(1)
    return np.sqrt(pixels) * detection_scale(boxes.extents, shorter, longer)


def level_sizes(
    shares: np.ndarray, image_size: int, copies: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Sizes on the canvases of every level: the whole image fills a cell of H / 2^s px.

    Views are random crops in training, which enlarge instances and cut them; here they are the
    whole image, as in the paper's figure, so that the montage's own effect is seen.

    Args:
      shares: float [n] of the image's area.
      image_size: H.
      copies: per level, how often an image appears; 0 leaves the level out.

    Returns:
      Per level s float [n * copies_s] in px.
    """
    sides = np.sqrt(shares) * image_size
    return tuple(np.tile(sides / 2**s, count) for s, count in enumerate(copies))


def statistics(sizes: np.ndarray) -> dict[str, float]:
    """Number of instances; mean, standard deviation (of the population) and quantiles in px.

    `octaves` is the standard deviation of log2 of the sizes: the range of scales, whatever the size
    of the images.
    """
    low, median, high = np.quantile(sizes, (0.05, 0.5, 0.95))
    return {
        "instances": len(sizes),
        "mean": float(sizes.mean()),
        "std": float(sizes.std()),
        "octaves": float(np.log2(sizes).std()),
        "q05": float(low),
        "median": float(median),
        "q95": float(high),
    }


def copies_of(section: Mapping[str, Any]) -> tuple[int, ...]:
    """Times an image appears per level, of a `config.montage`.

    Raises:
      UserError: for an assembly that has no whole montages.
    """
    if section["assembly"] == "copy_paste":
        raise UserError(
            "montage.assembly 'copy_paste' pastes over other images; instance sizes are computed "
            "for 'montage' and 'mosaic'"
        )
    layout = fill(montage.Layout, section)
    # validated as in training, for images that fill whole canvases at any level
    counts = montage.canvas_counts(4**layout.levels, layout)
    pairs = zip(layout.copies[: layout.levels], counts, strict=True)
    return tuple(copies if count else 0 for copies, count in pairs)


def measure(
    boxes: Boxes | int, copies: Sequence[int], image_size: int, shorter: int, longer: int
) -> dict[str, np.ndarray]:
    """Sizes under the names 'before', 'level 0'.., 'montage' (all levels together).

    Args:
      boxes: of the data set, or the number of its images if it has no boxes; these are then resized
        to H x H before, and each is one instance.
      copies: see `level_sizes`.
      image_size: H.
      shorter, longer: see `detection_scale`.

    Example:
      >>> print(as_text(measure(1000, (1, 1, 2, 4), image_size=224, shorter=800, longer=1333)))
      sizes in px  instances     mean      std  octaves      5 %     50 %     95 %
      before            1000   224.00     0.00     0.00   224.00   224.00   224.00
      level 0           1000   224.00     0.00     0.00   224.00   224.00   224.00
      level 1           1000   112.00     0.00     0.00   112.00   112.00   112.00
      level 2           2000    56.00     0.00     0.00    56.00    56.00    56.00
      level 3           4000    28.00     0.00     0.00    28.00    28.00    28.00
      montage           8000    70.00    64.16     1.05    28.00    42.00   224.00
    """
    if isinstance(boxes, int):
        shares, before = np.ones(boxes), np.full(boxes, float(image_size))
    else:
        shares, before = boxes.shares, before_sizes(boxes, shorter, longer)
    levels = level_sizes(shares, image_size, copies)
    named = {f"level {s}": sizes for s, sizes in enumerate(levels) if len(sizes)}
    return {BEFORE: before} | named | {AFTER: np.concatenate(levels)}


def as_text(measured: Mapping[str, np.ndarray]) -> str:
    """Statistics as lines of text, px."""
    titles = _columns("mean", "std", "octaves", "5 %", "50 %", "95 %")
    lines = [f"{'sizes in px':<12}{'instances':>10}" + titles]
    for name, sizes in measured.items():
        count, *values = statistics(sizes).values()
        lines.append(f"{name:<12}{count:>10}" + _columns(*(f"{v:.2f}" for v in values)))
    return "\n".join(lines)


def _columns(*cells: str) -> str:
    return "".join(f"{cell:>9}" for cell in cells)


def read(source: Source, *, progress: bool) -> Boxes | int:
    """The instances of an opened data set; the number of its images if it has no boxes.

    Boxes are looked for in TFDS data sets: a top-level sequence with a box in it, as COCO's
    `objects`. Crowds (`is_crowd`) and boxes without area are left out; image sizes come from the
    headers.

    Raises:
      UserError: if there are boxes, but none that counts.
    """
    key = box_key(source) if isinstance(source, TfdsSource) else None
    if key is None:
        return len(source)
    reader = BoxReader(source, *key)
    shares, extents, unreadable = [], [], 0
    for index in Bar(range(len(source)), unit="image", disable=not progress):
        boxes, extent = reader[index]
        if extent is None:
            unreadable += 1
            continue
        shares.append(areas(boxes))
        extents.append(np.broadcast_to(extent, (len(shares[-1]), 2)))
    areas_of_boxes = np.concatenate(shares) if shares else np.zeros(0)
    if not len(areas_of_boxes):
        raise UserError(f"no boxes in the {len(source)} images of this split")
    return Boxes(areas_of_boxes, np.concatenate(extents), unreadable)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Shares [n] of the image's area of boxes [m, 4], those without area left out."""
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    return (height * width)[(height > 0) & (width > 0)]


def box_key(source: TfdsSource) -> tuple[str, str] | None:
    """(sequence, box) names of the features that hold the boxes; None if there are none."""
    for name, sequence in _features(source).items():
        inner = getattr(sequence, "feature", None)
        if isinstance(inner, tfds.features.FeaturesDict):
            for key in inner:
                if isinstance(inner[key], tfds.features.BBoxFeature):
                    return name, key
    return None


def _features(source: TfdsSource) -> tfds.features.FeaturesDict:
    return tfds.builder_from_directory(source.__getstate__()["directory"]).info.features


class BoxReader(TfdsSource):
    """Boxes and the image's size instead of the image."""

    def __init__(self, source: TfdsSource, objects: str, box: str):
        super().__init__(**source.__getstate__())
        self._objects, self._box = objects, box

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, int] | None]:
        """(boxes [m, 4], (height, width) in px as stored or None if the header is broken)."""
        example = self._data[index]
        objects = example[self._objects]
        boxes = np.asarray(objects[self._box], np.float64).reshape(-1, 4)
        if "is_crowd" in objects:
            boxes = boxes[~np.asarray(objects["is_crowd"], bool)]
        return boxes, header_extent(bytes(example[self._image_key]))


def header_extent(data: bytes) -> tuple[int, int] | None:
    """(height, width) in px from an encoded image's header; None if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return image.height, image.width
    except Exception:  # Pillow's plugins raise anything on hostile bytes
        return None
