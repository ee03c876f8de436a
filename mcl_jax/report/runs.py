"""What runs learned, in words: one alone, or several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcl_jax import paths
from mcl_jax.errors import UserError
from mcl_jax.report import metrics
from mcl_jax.runtime import json_files, storage
from mcl_jax.runtime.storage import Place
from mcl_jax.settings import door

FILES = {
    "montages": "montage.png",
    "curves": "curves.png",
    "model card": "card.html",
    "metrics": "metrics.jsonl",
    "checkpoint": "checkpoints",
    "weights": "*/*.pkl",
    "fine-tuning": "*/*.yaml",
    "report": "*/report.txt",
}


def learned(workdir: Path) -> tuple[str, bool]:
    """(lines about a run, whether its loss fell and kNN, where measured, rose).

    Raises:
      UserError: if the folder holds no metrics.
    """
    folder = storage.locate(workdir)
    lines, losses = _lines(folder)
    share = max(1, len(losses) // 10)
    first, last = sum(losses[:share]) / share, sum(losses[-share:]) / share
    report = [f"loss       {first:.3f} -> {last:.3f}"]
    if top1 := [line["top1/level0"] for line in lines if "top1/level0" in line]:
        end = sum(top1[-share:]) / share
        report.append(f"retrieval  {top1[0]:.1%} -> {end:.1%} of views find their image")
    good = last < first
    if knn := [line["knn"] for line in lines if "knn" in line]:
        report.append(f"kNN        {knn[0]:.1%} untrained -> {knn[-1]:.1%} on held-out images")
        good = good and knn[-1] > knn[0]
    else:
        report.append(f"kNN        not measured: {_why_no_knn(folder)}")
    for name, pattern in FILES.items():
        report += [f"{name:<12} {path}" for path in storage.matching(folder, pattern)]
    return "\n".join(report), good


def side_by_side(workdirs: Sequence[Path]) -> str:
    """A table with a run in each row; folders without metrics are left out, and named.

    Columns: what the runs' configurations differ in, the last step, the last loss and kNN accuracy,
    images/s (median), hours of training.

    Raises:
      UserError: if none of the folders holds a run.
    """
    rows, configs, missing = {}, {}, []
    for workdir in map(storage.locate, workdirs):
        try:
            lines, losses = _lines(workdir)
        except UserError:
            missing.append(str(workdir))
            continue
        configs[workdir] = _config(workdir)
        rows[workdir] = _row(lines, losses, configs[workdir].get("data.batch_size"))
    if not rows:
        raise UserError(f"none of {', '.join(missing)} has a metrics.jsonl with losses")
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differ = [k for k in keys if len({str(c.get(k, "-")) for c in configs.values()}) > 1]
    header = ["run", *differ, *next(iter(rows.values()))]
    cells = [
        [str(w), *(_short(configs[w].get(key, "-")) for key in differ), *row.values()]
        for w, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [
        "  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip()
        for row in (header, *cells)
    ]
    return "\n".join([*lines, *(f"left out: {name} (no metrics)" for name in missing)])


def _config(workdir: Place) -> dict[str, Any]:
    """{key: value} of the run's configuration; {} where it was not written down."""
    path = workdir / "config.json"
    config = json_files.read_json(path, "a run's configuration") if storage.is_file(path) else {}
    return dict(door.flattened(config))


def _why_no_knn(workdir: Place) -> str:
    if _config(workdir).get("knn.every_epochs") == 0:
        return "knn.every_epochs is 0"
    return "the images have no labels (class sub-folders), or a split of them is empty"


def _row(lines: Sequence[Mapping[str, Any]], losses: Sequence[float], batch: Any) -> dict[str, str]:
    knn = [line["knn"] for line in lines if "knn" in line]
    has_batch = type(batch) is int and 0 < batch < 2**63  # an old configuration may lack it
    rates = sorted(line["images_per_s"] for line in lines if "images_per_s" in line)
    return {
        "step": f"{max(line['step'] for line in lines):,}",
        "loss": f"{losses[-1]:.3f}",
        "kNN": f"{knn[-1]:.1%}" if knn else "-",
        "images/s": f"{rates[len(rates) // 2]:.0f}" if rates else "-",
        "hours": f"{metrics.training_seconds(lines, batch) / 3600:.2f}" if has_batch else "-",
    }


def _lines(workdir: Place) -> tuple[list[dict[str, Any]], list[float]]:
    paths.existing_folder(workdir, "workdir", "give a --workdir of pretrain")
    storage.reachable(workdir)
    lines = metrics.read(workdir)
    losses = [line["loss"] for line in lines if "loss" in line]
    if not losses:
        raise UserError(f"{workdir} has no metrics.jsonl with losses; give a --workdir of pretrain")
    return lines, losses


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:13]}...{text[-14:]}"
