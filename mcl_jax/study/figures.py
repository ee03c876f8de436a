"""Pictures of a comparison: AP against labels, and AP gained over a control by IoU threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcl_jax.errors import UserError
from mcl_jax.report import plots
from mcl_jax.runtime.storage import Place

IOUS = tuple(range(50, 100, 5))  # percent, COCO's thresholds


def _by_row(finished: Sequence[Mapping[str, Any]], name: str) -> dict[str, np.ndarray]:
    """Row -> a score in percent of every seed that has it."""
    by_row: dict[str, list[float]] = {}
    for result in finished:
        if name in result["scores"]:
            by_row.setdefault(result["row"], []).append(100 * result["scores"][name])
    return {row: np.array(values) for row, values in by_row.items()}


def against_labels(
    path: Place,
    finished: Sequence[Mapping[str, Any]],
    rows: Sequence[str],
    modes: Sequence[str],
    counts: Mapping[str, int],
) -> None:
    """AP over the number of labeled images as one PNG: a panel a mode, a line a row.

    Args:
      path: file to write.
      finished: results of `runs.measure`.
      rows: in the legend's order.
      modes: of the probe.
      counts: name of a label budget ('110', 'all') -> images.

    Bars reach from the lowest to the highest seed.
    """
    figure, axes = plots.panels(1, len(modes), size=(5.2 * len(modes), 4.4))
    for axis, mode in zip(axes[0], modes, strict=True):
        by_budget = {name: _by_row(finished, f"{mode}@{name}/ap") for name in counts}
        for i, row in enumerate(rows):
            points = [(counts[n], by_budget[n][row]) for n in counts if row in by_budget[n]]
            if not points:
                continue
            x = np.array([count for count, _ in points]) * (1 + 0.012 * (i - len(rows) / 2))
            middle = np.array([values.mean() for _, values in points])
            low = middle - [values.min() for _, values in points]
            high = [values.max() for _, values in points] - middle
            style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
            label = f"{row} ({max(len(values) for _, values in points)})"
            axis.errorbar(x, middle, yerr=[low, high], label=label, color=f"C{i}", **style)
        axis.set_xscale("log")
        axis.set_xticks(list(counts.values()), [str(count) for count in counts.values()])
        axis.minorticks_off()
        axis.set_xlabel("labeled images")
        axis.set_ylabel("box AP [%]")
        axis.set_title({"tuned": "everything tuned"}.get(mode, f"frozen {mode}"), fontsize=11)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8, title="row (seeds)", title_fontsize=8)
    plots.save(figure, path, dpi=120)


def gains_by_iou(
    path: Place,
    finished: Sequence[Mapping[str, Any]],
    rows: Sequence[str],
    name: str,
    control: str,
) -> None:
    """AP gained over a control at every IoU threshold (paper Figure 6), as one PNG.

    Args:
      path: file to write.
      finished: results with 'row' and 'scores' that hold 'NAME/ap/iou50' to 'NAME/ap/iou95'.
      rows: in the legend's order.
      name: start of the scores' names, e.g. 'tuned@all'; '' for results of fine-tuning.
      control: the row that others are compared with.

    Raises:
      UserError: no result of the control has AP by threshold.
    """
    start = f"{name}/" if name else ""
    by_iou = {iou: _by_row(finished, f"{start}ap/iou{iou}") for iou in IOUS}
    if control not in by_iou[IOUS[0]]:
        raise UserError(f"no finished run of the control {control!r} has AP by IoU threshold")
    figure, axes = plots.panels(1, 1, size=(6.4, 4.4))
    axis = axes.item()
    for i, row in enumerate(row for row in rows if row in by_iou[IOUS[0]] and row != control):
        gains = [by_iou[iou][row].mean() - by_iou[iou][control].mean() for iou in IOUS]
        axis.plot(
            [iou / 100 for iou in IOUS], gains, marker="o", markersize=4, color=f"C{i}", label=row
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel("IoU threshold")
    axis.set_ylabel(f"AP gained over {control} [points]")
    axis.set_title(name, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    plots.save(figure, path, dpi=120)
