"""Pictures for the workdir: the first montages and the curves.

Shapes: canvases float [n, H, H, 3], normalized; counts canvases per level.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

from mcl_jax.runtime import storage


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes [rows, columns]."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Writes a figure as PNG, whole or not at all."""
    storage.write(storage.locate(path), lambda file: figure.savefig(file, dpi=dpi, format="png"))


def sheet(
    path: str | os.PathLike,
    rows: Mapping[str, np.ndarray],
    mean: Sequence[float],
    std: Sequence[float],
    columns: int,
) -> None:
    """What the network is given, a titled row each, as one PNG.

    Args:
      path: file to write.
      rows: title -> [n, h, w, 3], normalized.
      mean, std: of the normalization to undo.
      columns: images shown per row at most.
    """
    figure, axes = panels(len(rows), columns, size=(2.4 * columns, 2.6 * len(rows)))
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        pixels = np.clip(np.asarray(images[:columns], np.float32) * std + mean, 0, 1)
        row[0].set_title(title, fontsize=9, loc="left")
        for column, axis in enumerate(row):
            axis.set_axis_off()
            if column < len(pixels):
                axis.imshow(pixels[column], interpolation="nearest")
    save(figure, path, dpi=110)


def curves(path: str | os.PathLike, lines: Sequence[Mapping[str, Any]]) -> None:
    """Loss, retrieval, cosines, feature spread, learning rate and kNN over steps, as one PNG."""
    layout = (
        ("loss", ("loss",)),
        ("loss per level", _per_level("loss", lines)),
        ("retrieval top-1", _per_level("top1", lines)),
        ("cosine to the positive", _per_level("positive", lines)),
        ("std of normalized features", _per_level("std", lines)),
        ("kNN accuracy", ("knn", *_per_level("knn", lines))),
        ("shrunk images that find themselves", _per_level("retrieval", lines)),
        ("gradient norm", ("grad_norm",)),
        ("learning rate", ("lr",)),
    )
    figure, axes = panels(3, 3, size=(12, 9))
    for axis, (title, names) in zip(axes.flat, layout, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                label = name.rpartition("/")[2]
                axis.plot(*zip(*points, strict=True), label=label, marker="." * (len(points) < 30))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            _legend(axis)
    save(figure, path, dpi=100)


def _legend(axis: Any) -> None:
    """Where it hides least; one of many lines gets room above them."""
    if len(axis.lines) <= 4:
        axis.legend(fontsize=7)
        return
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.35 * (high - low))
    axis.legend(fontsize=7, ncols=3, loc="upper left")


def size_histogram(path: str | os.PathLike, sizes: Mapping[str, np.ndarray], title: str) -> None:
    """Distributions of instance sizes over one logarithmic axis, as one PNG.

    Args:
      path: file to write.
      sizes: name -> float [n] in px, above 0.
      title: of the picture.
    """
    # Half-open bins, four an octave, so that powers of two begin a bin.
    low = np.floor(np.log2(min(x.min() for x in sizes.values())))
    high = np.ceil(np.log2(max(x.max() for x in sizes.values())) + 0.01)
    edges = 2 ** np.arange(low, high + 0.25, 0.25)
    figure, axes = panels(1, 1, size=(8, 4.5))
    axis = axes.item()
    for name, x in sizes.items():
        label = f"{name}\nmean {x.mean():.1f}, std {x.std():.1f} px"
        share = np.full(len(x), 100 / len(x))
        axis.hist(x, edges, weights=share, histtype="stepfilled", alpha=0.5, label=label)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("square root of the area [px]")
    axis.set_ylabel("share of the instances [%]")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path, dpi=110)


def _per_level(prefix: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = {name for line in lines for name in line if name.startswith(f"{prefix}/")}
    return tuple(sorted(names))
