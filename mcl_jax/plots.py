"""Pictures for the workdir: the first montages and the curves.

Shapes: canvases float [n, H, H, 3], normalised; counts canvases per level.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)
import numpy as np  # noqa: E402


def montage_sheet(
    path: str | Path,
    canvases: np.ndarray,
    counts: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    columns: int,
) -> None:
    """A row of canvases per montage level with the pyramid level that reads them.

    Args:
      path: PNG to write.
      canvases: one side's, ordered by level.
      counts: canvases per level.
      mean, std: of the normalisation to undo.
      columns: canvases shown per level at most.
    """
    pixels = np.clip(np.asarray(canvases, np.float32) * std + mean, 0, 1)
    rows, side = len(counts), pixels.shape[1]
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    start = 0
    for s, count in enumerate(counts):
        for column, axis in enumerate(axes[s]):
            axis.set_axis_off()
            if column >= count:
                continue
            axis.imshow(pixels[start + column], interpolation="nearest")
            if column == 0:
                axis.set_title(
                    f"level {s} → P{5 - s}: {4**s} image{'s' if s else ''} of {side // 2**s} px",
                    fontsize=9,
                    loc="left",
                )
        start += count
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(path: str | Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Loss, retrieval, cosines, feature spread, learning rate and kNN over steps, as one PNG."""
    panels = (
        ("loss", ("loss",)),
        ("loss per level", _per_level("loss", lines)),
        ("retrieval top-1", _per_level("top1", lines)),
        ("cosine to the positive", _per_level("positive", lines)),
        ("std of normalised features", _per_level("std", lines)),
        ("kNN accuracy", ("knn",)),
        ("gradient norm", ("grad_norm",)),
        ("learning rate", ("lr",)),
    )
    figure, axes = plt.subplots(2, 4, figsize=(15, 6), layout="constrained")
    for axis, (title, names) in zip(axes.flat, panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                label = name.rpartition("/")[2] if "/" in name else None
                axis.plot(*zip(*points, strict=True), label=label, marker="." * (len(points) < 30))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _per_level(prefix: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    names = {name for line in lines for name in line if name.startswith(f"{prefix}/")}
    return tuple(sorted(names))
