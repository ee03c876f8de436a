"""The tables of a comparison, in Markdown, between two marks of a document."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mcl_jax.errors import UserError
from mcl_jax.runtime import json_files, renamed_keys, storage
from mcl_jax.runtime.storage import Place
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


def read(results: Place) -> list[dict[str, Any]]:
    """All finished runs of a folder, their scores under the names of today.

    Raises:
      UserError: one of the files is damaged, or is no run's.
    """
    return [read_run(path) for path in storage.matching(results, "*-seed*.json")]


def read_run(path: Place) -> dict[str, Any]:
    """What `runs.measure` found of one run; errors as `read`."""
    run = json_files.read_json(path, "a finished run of a study")
    scores = run.get("scores")
    numbers = isinstance(scores, dict) and all(isinstance(x, int | float) for x in scores.values())
    named = all(isinstance(run.get(name), str) for name in ("row", "config"))
    if not (numbers and named and isinstance(run.get("seed"), int)):
        reason = "it lacks row, seed, config or scores"
        raise json_files.damaged(path, "a finished run of a study", reason)
    return run | {"scores": renamed_keys.modern_scores(scores)}


def table(finished: list[dict[str, Any]], config: ConfigDict) -> str:
    """Markdown: mean ± standard deviation (n - 1) over seeds in percent, in the study's order.

    Columns that no row has are left out.
    """
    lines = []
    for title, columns in titles(config).items():
        names = {name for result in finished for name in result["scores"]}
        columns = [column for column in columns if column[1] in names] or columns[:1]
        lines += _head(title, columns)
        for row in config.study.rows:
            scores_of_row = [result["scores"] for result in finished if result["row"] == row]
            if scores_of_row:
                cells = [
                    _cell([scores.get(name) for scores in scores_of_row]) for _, name in columns
                ]
                lines.append(f"| {row} | {len(scores_of_row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gains(finished: list[dict[str, Any]], config: ConfigDict) -> str:
    """Markdown: AP of every row minus AP of the untrained row of the same seed; '' without any pair.

    Rows of one seed share the probe's labels, order and new layers, so a seed's good luck is in both
    and cancels. Cells have the mean, then every seed's value.
    """
    scores = {(result["row"], result["seed"]): result["scores"] for result in finished}
    control = config.study.untrained
    columns = tuple(
        (f"{mode}, {labels or 'all'} labels", f"{mode}@{labels or 'all'}/ap")
        for mode in config.study.modes
        for labels in config.study.labels
    )
    lines = []
    for row in config.study.rows:
        seeds = sorted(seed for name, seed in scores if name == row and (control, seed) in scores)
        if seeds and row != control:
            pairs = [(scores[row, seed], scores[control, seed]) for seed in seeds]
            cells = [_differences(pairs, name) for _, name in columns]
            lines.append(f"| {row} | {len(seeds)} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = _head(f"Detection, AP above {control}, within a seed", columns)
    return "\n".join([*head, *lines]) + "\n"


def _head(title: str, columns: Columns) -> list[str]:
    """The lines of a table above its first row."""
    return [
        f"\n### {title}\n",
        "| row | seeds | " + " | ".join(heading for heading, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]


def _differences(pairs: list[tuple[dict[str, float], dict[str, float]]], name: str) -> str:
    values = [
        100 * (ours[name] - theirs[name])
        for ours, theirs in pairs
        if name in ours and name in theirs
    ]
    if not values:
        return "-"
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{each}"


def _cell(values: list[float | None]) -> str:
    present = 100 * np.array([value for value in values if value is not None])
    if not len(present):
        return "-"
    spread = f" ± {present.std(ddof=1):.1f}" if len(present) > 1 else ""
    return f"{present.mean():.1f}{spread}"


MARKS = ("<!-- table: written by mcl-jax study -->", "<!-- end of table -->")


def around(document: Place) -> tuple[str, str]:
    """What a document says before and behind the table; if it is not there, what a new one will.

    Raises:
      UserError: it is no text, or has no place for the table.
    """
    if not storage.exists(document):
        return "# Study\n\n", "\n"
    try:
        content = storage.read(document).decode()
    except ValueError:
        raise UserError(f"{document} is no UTF-8 text; give another --document") from None
    before, first, rest = content.partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not (first and second):
        raise UserError(f"{document} lacks the marks {MARKS[0]} and {MARKS[1]}")
    return before, after


def write_table(document: Place, text: str) -> None:
    """Puts the table between the document's two marks; the words around it stay."""
    before, after = around(document)
    storage.make_folder(document.parent)
    storage.write_result(document, f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}")


def show(config: ConfigDict, results: Place, document: Place) -> str:
    """Writes tables and picture of what is finished into a document; returns the tables."""
    finished = read(results)
    text = table(finished, config) + gains(finished, config)
    picture = document.with_name(f"{document.stem}.png")
    budgets, every = config.study.labels, config.study.train_images
    counts = {str(labels or "all"): labels or every for labels in budgets}
    if finished and len(counts) > 1:
        figures.against_labels(
            picture, finished, rows=config.study.rows, modes=config.study.modes, counts=counts
        )
        text += f"\n![AP against labels]({picture.name})\n\n*{config.study.caption}*\n"
    write_table(document, text)
    return text
