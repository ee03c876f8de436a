"""PNG sheets of what a checkpoint sees (`mcl-jax visualize`).

Shapes: images float [n, H, H, 3] in [0, 1].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from mcl_jax.report import plots

RIGHT, WRONG = "#2a9d4a", "#c94040"


def features(path: Path, images: np.ndarray, maps: Mapping[str, np.ndarray]) -> None:
    """A row per image: the image, then every level's map in principal colors.

    Args:
      path: PNG to write.
      images: [n, H, H, 3].
      maps: level -> [n, h, w, 3].
    """
    figure, axes = _grid(len(images), 1 + len(maps))
    for i, row in enumerate(axes):
        _show(row[0], images[i], "image" if i == 0 else "")
        for axis, (name, colors) in zip(row[1:], maps.items(), strict=True):
            size = "x".join(map(str, colors.shape[1:3]))
            _show(axis, colors[i], f"{name} ({size})" if i == 0 else "")
    _save(figure, path, "Features: first three principal components of each level, over all images")


def activations(
    path: Path, images: np.ndarray, columns: Sequence[tuple[str, np.ndarray, np.ndarray]]
) -> None:
    """A row per image: the image, then heat over it.

    Args:
      path: PNG to write.
      images: [n, H, H, 3].
      columns: (title, images [n, h, h, 3], heat [n, h, h] in [0, 1]).
    """
    figure, axes = _grid(len(images), 1 + len(columns))
    for i, row in enumerate(axes):
        _show(row[0], images[i], "image" if i == 0 else "")
        for axis, (title, pixels, heat) in zip(row[1:], columns, strict=True):
            colors = colormaps["turbo"](heat[i])[..., :3]
            _show(axis, 0.45 * pixels[i] + 0.55 * colors, title if i == 0 else "")
    _save(
        figure, path, "Activation: sum over channels of squares, each map from blue (0) to red (1)"
    )


def retrieval(
    path: Path,
    images: np.ndarray,
    cosines: Mapping[int, np.ndarray],
    readings: Mapping[int, str],
    queries: int,
    answers: int,
) -> None:
    """Shrunk images as queries, a row each, and the full-size images that are nearest to them.

    The query's own image is framed in green; where another one comes first, that is framed in red.

    Args:
      path: PNG to write.
      images: [n, H, H, 3].
      cosines: shrink factor -> [n shrunk, n at full size].
      readings: shrink factor -> the map that the query was read at.
      queries: rows per factor at most.
      answers: images per row at most.
    """
    side, n = images.shape[1], len(images)
    rows = [(factor, i) for factor in sorted(cosines, reverse=True) for i in range(min(n, queries))]
    figure, axes = _grid(len(rows), 1 + min(answers, n))
    for (factor, i), row in zip(rows, axes, strict=True):
        small = images[i].reshape(side // factor, factor, side // factor, factor, 3).mean((1, 3))
        _show(row[0], small, f"{side // factor} px at {readings[factor]}")
        order = np.argsort(-cosines[factor][i], kind="stable")
        for rank, (axis, j) in enumerate(zip(row[1:], order, strict=False)):
            _show(axis, images[j], f"{cosines[factor][i, j]:.3f}")
            if j == i:
                _frame(axis, RIGHT)
            elif rank == 0:
                _frame(axis, WRONG)
    right = {f: float((c.argmax(1) == np.arange(n)).mean()) for f, c in cosines.items()}
    shares = ", ".join(f"{side // f} px {share:.0%}" for f, share in sorted(right.items()))
    _save(figure, path, f"Shrunk images look for themselves among {n} of {side} px: {shares} found")


def montages(
    path: Path,
    rows: Mapping[str, np.ndarray],
    levels: Sequence[int],
    columns: int,
) -> None:
    """Canvases as the network gets them; every tile says which pyramid level it feeds.

    Args:
      path: PNG to write.
      rows: title -> [m, H, H, 3].
      levels: per row its montage level, grids of 2^s x 2^s tiles; () for none.
      columns: canvases per row at most.
    """
    figure, axes = _grid(len(rows), columns)
    for r, (row, (title, canvases)) in enumerate(zip(axes, rows.items(), strict=True)):
        for axis, canvas in zip(row, canvases[:columns], strict=False):
            _show(axis, canvas, "")
            if levels:
                _name_tiles(axis, canvas.shape[0], grid=2 ** levels[r], name=f"P{5 - levels[r]}")
        row[0].set_title(title, fontsize=9, loc="left")
    _save(figure, path, "What training makes of these images")


def boxes(
    path: Path,
    images: Sequence[np.ndarray],
    truth: Sequence[Sequence[tuple[str, np.ndarray]]],
    detections: Sequence[Sequence[tuple[str, np.ndarray]]],
    title: str,
) -> None:
    """Images with true boxes (green, solid) and detections (red, dashed), four images a row.

    Args:
      path: PNG to write.
      images: [h, w, 3] each.
      truth, detections: per image (caption, (ymin, xmin, ymax, xmax) in px).
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plots.panels(rows, columns, size=(3.2 * columns, 2.9 * rows))
    for axis, image, real, guesses in zip(axes.flat, images, truth, detections, strict=False):
        _show(axis, image, "")
        for named, color, style, at_top in (
            (real, RIGHT, "-", True),
            (guesses, WRONG, "--", False),
        ):
            for caption, box in named:
                _draw_box(axis, caption, box, color=color, style=style, at_top=at_top)
    _save(figure, path, title)


def _draw_box(axis, caption: str, box: np.ndarray, *, color: str, style: str, at_top: bool) -> None:
    top, left, bottom, right = (float(side) - 0.5 for side in box)
    outline = Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=color, linestyle=style,
        linewidth=1.4,
    )  # fmt: skip
    axis.add_patch(outline)
    back = {"facecolor": color, "alpha": 0.75, "pad": 0.6, "edgecolor": "none"}
    place = (top, "top") if at_top else (bottom, "bottom")
    axis.text(
        left, place[0], caption, fontsize=6, color="white", va=place[1], bbox=back, clip_on=True
    )


def _name_tiles(axis, side: int, grid: int, name: str) -> None:
    tile = side / grid
    for line in range(1, grid):
        axis.axhline(line * tile - 0.5, color="white", linewidth=0.8)
        axis.axvline(line * tile - 0.5, color="white", linewidth=0.8)
    size = {1: 9, 2: 8, 4: 6}.get(grid, 3.5)
    box = {"facecolor": "black", "alpha": 0.55, "pad": 0.8, "edgecolor": "none"}
    for y in range(grid):
        for x in range(grid):
            corner = ((x + 0.06) * tile, (y + 0.08) * tile)
            axis.text(*corner, name, fontsize=size, color="white", va="top", bbox=box)


def _grid(rows: int, columns: int):
    return plots.panels(rows, columns, size=(1.9 * columns, 1.95 * rows))


def _show(axis, image: np.ndarray, title: str) -> None:
    axis.imshow(np.clip(image, 0, 1), interpolation="nearest")
    axis.set_title(title, fontsize=8)


def _frame(axis, color: str) -> None:
    axis.patch.set(linewidth=6, edgecolor=color)
    axis.set_frame_on(True)


def _save(figure, path: Path, title: str) -> None:
    for axis in figure.axes:
        axis.set_xticks([])
        axis.set_yticks([])
        framed = axis.patch.get_linewidth() > 5
        for spine in axis.spines.values():
            spine.set_visible(framed)
            if framed:
                spine.set(edgecolor=axis.patch.get_edgecolor(), linewidth=4)
        if not axis.images:
            axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    plots.save(figure, path, dpi=110)
