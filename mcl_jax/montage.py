"""The montage: views -> canvases and the label of every sub-image (paper section 3.1, Alg. 1).

Shapes: views of level s [b, H, W, C], or of their rows and columns each stride-th; canvases of
level s [n_s, H, W, C] made of grids of r x r sub-images, r = 2^s; order and labels int32
[n_s * r * r], sub-images in row-major order, values in [0, b) that name the image. Everything is
local to one device and a pure function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class Layout:
    """How the canvases of one side are made; the fields are the keys of `config.montage`.

    Attributes:
      assembly: 'montage' (the method), 'mosaic' (2 x 2 canvases alone: level 1 without level 0) or
        'copy_paste' (see mcl_jax.views.copy_paste); the last two are the baselines of paper Table 8.
      levels: S, number of montage levels; level s shrinks its views by 2^s.
      copies: per level, how often each image appears among the level's sub-images.
      shrink: 'nearest' (the authors': every r-th pixel) or 'antialias' (mean of r x r pixels).
      boundary_sigma: k of the Gaussian boundary mask, in sub-image widths (paper Table 10c: .75,
        .5); 0 for no mask.
    """

    assembly: str
    levels: int
    copies: tuple[int, ...]
    shrink: str
    boundary_sigma: float

    @property
    def strides(self) -> tuple[int, ...]:
        """Per level: of a view's rows and columns, each stride-th is all that `shrink` reads."""
        kept_of = 2 if self.shrink == "nearest" else 1
        return tuple(kept_of**s for s in range(self.levels))


class Montage(NamedTuple):
    """Canvases of one side, ordered by level, and the labels of every level's sub-images."""

    canvases: Array  # [n, H, W, C]
    labels: tuple[Array, ...]  # per level int32 [n_s * 4^s]
    cells: tuple[Array | None, ...]  # per level None: all cells; see Encoder


def canvas_counts(images: int, layout: Layout, key_groups: int = 1) -> tuple[int, ...]:
    """Canvases per level of some key groups: of each n_s = images * copies_s / 4^s, at least 1.

    Below one canvas, one canvas is made and images repeat to fill it. A mosaic has no canvas of
    level 0.

    Raises:
      UserError: if a count above 1 is not whole.

    Example:
      >>> layout = Layout("montage", 2, copies=(1, 1), shrink="nearest", boundary_sigma=0.0)
      >>> canvas_counts(8, layout)
      (8, 2)
    """
    counts = []
    for s, copies in enumerate(layout.copies[: layout.levels]):
        sub_images, grid = images * copies, 4**s
        if sub_images > grid and sub_images % grid:
            raise UserError(
                f"level {s}: {images} images montaged together (data.group_size, or those of one "
                f"device) x {copies} copies = {sub_images} sub-images do not fill whole canvases "
                f"of {grid}; a multiple of {grid // copies} images would"
            )
        counts.append(key_groups * max(1, sub_images // grid))
    if layout.assembly == "mosaic":
        counts[0] = 0
    return tuple(counts)


def shrink(images: Array, ratio: int, method: str) -> Array:
    """[b, H, W, C] -> [b, H/ratio, W/ratio, C]; 'nearest' keeps pixel 0 of every ratio pixels.

    Example:
      >>> shrink(jnp.arange(16.0).reshape(1, 4, 4, 1), 2, "antialias")[0, :, :, 0].tolist()
      [[2.5, 4.5], [10.5, 12.5]]
    """
    if ratio == 1:
        return images
    if method == "nearest":
        return images[:, ::ratio, ::ratio]
    b, h, w, c = images.shape
    return images.reshape(b, h // ratio, ratio, w // ratio, ratio, c).mean((2, 4))


def boundary_mask(height: int, width: int, sigma: float) -> Array:
    """Gaussian [height, width, 1], 1 in the center, std (sigma * width, sigma * height) px.

    It multiplies the normalized sub-image, so borders fade to the data set's mean color.
    """

    def profile(size: int) -> Array:
        distance = jnp.arange(size) - (size - 1) / 2
        return jnp.exp(-0.5 * jnp.square(distance / (sigma * size)))

    return (profile(height)[:, None] * profile(width)[None, :])[..., None]


def assemble(images: Array, order: Array, grid: int) -> Array:
    """Places sub-images on canvases.

    Args:
      images: [b, h, w, C] sub-images, already shrunk.
      order: int [n * grid * grid]; entry i names the image at row-major position i.
      grid: sub-images per canvas side.

    Returns:
      [n, grid*h, grid*w, C]; every sub-image is bit-equal to its source.

    Example:
      >>> images = jnp.arange(4.0).reshape(4, 1, 1, 1)  # four images of one pixel
      >>> assemble(images, jnp.array([2, 0, 3, 1]), grid=2)[0, :, :, 0].tolist()
      [[2.0, 0.0], [3.0, 1.0]]
    """
    _, h, w, c = images.shape
    tiles = images[order].reshape(-1, grid, grid, h, w, c)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid * h, grid * w, c)


def draw_orders(keys: Array, images: int, counts: Sequence[int]) -> tuple[Array, ...]:
    """Per level and key group `permutation(n_s * 4^s) mod images`; images are numbered on.

    Args:
      keys: [G], one per key group (see `mcl_jax.keys`).
      images: of a key group.
      counts: n_s of all key groups together.

    Returns:
      Per level int32 [n_s * 4^s], one key group after the other; level 0, if any, stays in image order.
    """
    groups = len(keys)
    orders = [jnp.arange(groups * images if counts[0] else 0, dtype=jnp.int32)]
    first = jnp.arange(groups, dtype=jnp.int32)[:, None] * images
    for s, n in enumerate(counts[1:], start=1):

        def draw(key, level=s, places=n // groups * 4**s):
            return jax.random.permutation(jax.random.fold_in(key, level), places) % images

        orders.append((first + jax.vmap(draw)(keys)).astype(jnp.int32).reshape(-1))
    return tuple(orders)


def sub_images(views: Sequence[Array], level: int, method: str) -> Array:
    """A level's views, or what `Layout.strides` keeps of them, as sub-images [b, H/r, W/r, C]."""
    kept_of = views[0].shape[1] // views[level].shape[1]
    return shrink(views[level], 2**level // kept_of, method)


def build(
    views: Sequence[Array], orders: Sequence[Array], layout: Layout, dtype: jnp.dtype
) -> Montage:
    """Makes one side's canvases from its views and given orders (a replay, or `draw_orders`).

    Args:
      views: one augmented view per level and image, each level's own array: see `sub_images`.
      orders: per level int [n_s * 4^s].
      layout: see Layout.
      dtype: of the canvases; the network's own saves memory traffic.
    """
    canvases = []
    for s, order in enumerate(orders):
        small = sub_images(views, s, layout.shrink)
        if s > 0 and layout.boundary_sigma > 0:
            height, width = small.shape[1:3]
            mask = boundary_mask(height, width, layout.boundary_sigma)
            small = small * mask.astype(small.dtype)
        canvases.append(assemble(small.astype(dtype), order, 2**s))
    return Montage(jnp.concatenate(canvases), tuple(orders), (None,) * len(orders))


def rows(canvases: Array, counts: Sequence[int]) -> dict[str, Array]:
    """One side's canvases as titled rows of a picture, a level each."""
    side, start, titled = canvases.shape[1], 0, {}
    for s, count in enumerate(counts):
        plural = "s" if s else ""
        title = f"level {s} → P{5 - s}: {4**s} image{plural} of {side // 2**s} px"
        if count:
            titled[title] = canvases[start : start + count]
        start += count
    return titled


def first_copies(labels: Array, images: int) -> Array:
    """int32 [images]: position of every image's first sub-image in `labels`."""
    positions = jnp.arange(labels.shape[0], dtype=jnp.int32)
    return jnp.full(images, labels.shape[0], jnp.int32).at[labels].min(positions)
