"""Copy-Paste assembly (paper Table 8): every canvas is a view with one shrunk view pasted in.

Shapes: views of level s [b, H, W, C], or of their rows and columns each stride-th; canvas i is
view i of level 0; the canvases are split in S - 1 parts of g_s, and those of part s carry one
view of level s, shrunk by r = 2^s, in one cell of their r x r grid.

Ghiasi et al., 2021, paste segmented objects. Without labels there are no masks, so a whole
sub-image is pasted; that it keeps to the grid makes its feature tile exact, as in the montage. The
paper gives no details of its 'SSL + Copy-Paste', so this reading is ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax.errors import UserError
from mcl_jax.montage import Layout, Montage, sub_images

Array = jax.Array
Span = tuple[int, int]


class Pastes(NamedTuple):
    """What is pasted where, per level s > 0."""

    images: tuple[Array, ...]  # int32 [g_s] which image
    cells: tuple[Array, ...]  # int32 [g_s] row-major cell of the grid


def spans(images: int, layout: Layout) -> tuple[Span, ...]:
    """Canvases per level: all of them for level 0, one group for each other level.

    Raises:
      UserError: with fewer than two levels, or fewer images than parts.
    """
    parts = layout.levels - 1
    if parts < 1 or images < max(2, parts):
        raise UserError(
            f"montage.assembly 'copy_paste' needs at least 2 levels and as many images per device "
            f"as levels, got {layout.levels} levels and {images} images"
        )
    ends = [images * s // parts for s in range(parts + 1)]
    return ((0, images), *zip(ends[:-1], ends[1:], strict=True))


def draw(key: Array, images: int, layout: Layout) -> Pastes:
    """A random other image and a random cell for every canvas."""
    partners, cells = [], []
    for s, (start, stop) in enumerate(spans(images, layout)[1:], start=1):
        shift_key, cell_key = jax.random.split(jax.random.fold_in(key, s))
        shift = jax.random.randint(shift_key, (), 1, images)  # never the canvas's own image
        partners.append((jnp.arange(start, stop, dtype=jnp.int32) + shift) % images)
        cells.append(jax.random.randint(cell_key, (stop - start,), 0, 4**s, jnp.int32))
    return Pastes(tuple(partners), tuple(cells))


def build(views: Sequence[Array], pastes: Pastes, layout: Layout, dtype: jnp.dtype) -> Montage:
    """One side's canvases [b, H, W, C]; level 0's label i is canvas i. See `montage.build`."""
    images, height, width = views[0].shape[:3]
    canvases = []
    parts = spans(images, layout)[1:]
    for s, (start, stop) in enumerate(parts, start=1):
        small = sub_images(views, s, layout.shrink)[pastes.images[s - 1]]
        everywhere = jnp.tile(small, (1, 2**s, 2**s, 1))
        rows = jnp.arange(height) // (height >> s)
        columns = jnp.arange(width) // (width >> s)
        cell = rows[:, None] * 2**s + columns[None, :]
        in_cell = cell == pastes.cells[s - 1][:, None, None]
        canvases.append(jnp.where(in_cell[..., None], everywhere, views[0][start:stop]))
    labels = (jnp.arange(images, dtype=jnp.int32), *pastes.images)
    return Montage(jnp.concatenate(canvases).astype(dtype), labels, (None, *pastes.cells))
