"""The tables of a comparison, in Markdown, between two marks of a document."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mcl_jax.errors import UserError
from mcl_jax.runtime import renamed_keys
from mcl_jax.study import figures

Columns = tuple[tuple[str, str], ...]  # (heading, name among a run's scores)
NEIGHBORS: Columns = (
    ("kNN", "knn"),
    *((f"1/{factor}", f"knn/shrink{factor}") for factor in (2, 4, 8)),
    ("P5", "knn/P5"),
    *((f"1/{32 >> level} P{level}", f"knn/P{level}") for level in (4, 3, 2)),
    *((f"same P{level}", f"retrieval/P{level}") for level in (4, 3, 2)),
)
SIZES = (("AP50", "ap50"), ("S", "ap_small"), ("M", "ap_medium"), ("L", "ap_large"))


def titles(config: ConfigDict) -> dict[str, Columns]:
    """Title of a table -> its columns: one of neighbors, one of detection per mode of the probe."""
    tables = {"Nearest neighbors": NEIGHBORS}
    for mode in config.study.modes:
        columns = []
        for labels in config.study.labels:
            name = f"{mode}@{labels or 'all'}"
            columns.append((f"{labels or 'all'} labels: AP", f"{name}/ap"))
            columns += [(heading, f"{name}/{key}") for heading, key in SIZES]
        tables[f"Detection, {mode}"] = tuple(columns)
    return tables


def read(results: Path) -> list[dict[str, Any]]:
    """All finished runs of a folder, their scores under the names of today."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*-seed*.json"))]
    return [run | {"scores": renamed_keys.modern_scores(run["scores"])} for run in found]


def table(finished: list[dict[str, Any]], config: ConfigDict) -> str:
    """Markdown: mean ± standard deviation (n - 1) over seeds in percent, in the study's order.

    Columns that no row has are left out.
    """
    lines = []
    for title, columns in titles(config).items():
        there = {name for result in finished for name in result["scores"]}
        columns = [column for column in columns if column[1] in there] or columns[:1]
        lines += [
            f"\n### {title}\n",
            "| row | seeds | " + " | ".join(heading for heading, _ in columns) + " |",
            "|---|---|" + "---|" * len(columns),
        ]
        for row in config.study.rows:
            own = [result["scores"] for result in finished if result["row"] == row]
            if own:
                cells = [_cell([scores.get(name) for scores in own]) for _, name in columns]
                lines.append(f"| {row} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    present = 100 * np.array([value for value in values if value is not None])
    if not len(present):
        return "-"
    spread = f" ± {present.std(ddof=1):.1f}" if len(present) > 1 else ""
    return f"{present.mean():.1f}{spread}"


MARKS = ("<!-- table: written by mcl-jax study -->", "<!-- end of table -->")


def write_table(document: Path, text: str) -> None:
    """Puts the table between the document's two marks; the words around it stay."""
    before, after = "# Study\n\n", "\n"
    if document.exists():
        whole = document.read_text(encoding="utf-8")
        if MARKS[0] not in whole or MARKS[1] not in whole:
            raise UserError(f"{document} lacks the marks {MARKS[0]} and {MARKS[1]}")
        before, rest = whole.split(MARKS[0], 1)
        after = rest.split(MARKS[1], 1)[1]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8")


def show(config: ConfigDict, results: Path, document: Path) -> str:
    """Writes tables and picture of what is finished into a document; returns the tables."""
    finished = read(results)
    text = table(finished, config)
    picture = document.with_name(f"{document.stem}.png")
    budgets, every = config.study.labels, config.study.train_images
    counts = {str(labels or "all"): labels or every for labels in budgets}
    if finished and len(counts) > 1:
        figures.against_labels(picture, finished, config.study.rows, config.study.modes, counts)
        text += f"\n![AP against labels]({picture.name})\n\n*{config.study.caption}*\n"
    write_table(document, text)
    return text
