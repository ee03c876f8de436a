"""What the linear SVMs of all classes are worth: mAP, low-shot rows, and the table of them.

Shapes: n images, C classes; features float64 [n, F]; labels int8 [n, C] of `data.image_labels`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mcl_jax.data.image_labels import DIFFICULT, PRESENT
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import svm_fit
from mcl_jax.evaluate.linear.svm_fit import Machines, Split
from mcl_jax.report.progress import Bar
from mcl_jax.settings.records import fill


@dataclass(frozen=True)
class SVMSettings:
    """The keys of `config.svm`; units and sources stand in configs/base.py."""

    train_split: str
    test_split: str
    batch_size: int
    stages: tuple[str, ...]
    costs: tuple[float, ...]
    folds: int
    positive_weight: float
    max_iterations: int
    tolerance: float
    shots: tuple[int, ...]
    samples: int
    threads: int


def measure(
    settings: SVMSettings,
    seed: int,
    class_names: tuple[str, ...],
    train: Mapping[str, Split],
    test: Mapping[str, Split],
) -> dict[str, Any]:
    """Trains and tests the machines of every class on given features.

    Args:
      settings: of the machines.
      seed: of folds and low-shot subsets.
      class_names: C of them.
      train, test: stage -> features and labels; the labels are the same for all stages.

    Returns:
      'train_images', 'test_images', 'left_out' (classes that cannot be measured: fewer than two
      images that show them or that do not in training, none of either kind in test),
      'shots_left_out' (k for which a class has too few images) and 'stages': per stage 'map',
      'map_11point' (means over classes, in [0, 1]), 'classes' [{'name', 'positives', 'cost',
      'cross_validation', 'ap', 'ap_11point'}] and 'low_shot' [{'shots', 'cost', 'map', 'std',
      'samples'}]; see `_low_shot` for its cost.

    Raises:
      UserError: no class can be measured.
    """
    labels = [next(iter(split.values())).labels for split in (train, test)]
    measured = [c for c in range(len(class_names)) if _is_measured(c, *labels)]
    if not measured:
        raise UserError(
            "no class can be measured: each needs two training images that show it, two that do "
            "not, and one of each kind among the test images"
        )
    fewest = min((labels[0][:, c] == PRESENT).sum() for c in measured)
    shots = [k for k in settings.shots if k <= fewest]
    job = _Job(seed, settings, measured=measured, shots=shots, class_names=class_names)
    return {
        "train_images": len(labels[0]),
        "test_images": len(labels[1]),
        "left_out": [name for c, name in enumerate(class_names) if c not in measured],
        "shots_left_out": [k for k in settings.shots if k > fewest],
        "stages": {
            stage: _stage(job, stage, train=train[stage], test=test[stage]) for stage in train
        },
    }


@dataclass(frozen=True)
class _Job:
    """What all stages share; `measured` are numbers of classes."""

    seed: int
    settings: SVMSettings
    measured: list[int]
    shots: list[int]
    class_names: tuple[str, ...]

    @property
    def machines(self) -> Machines:
        return fill(Machines, vars(self.settings))

    def each(self, title: str, work: Any, arguments: list[tuple]) -> list[Any]:
        """work(*arguments[i]) for every i, in threads and with a bar."""
        threads = self.settings.threads or len(os.sched_getaffinity(0))
        bar = partial(Bar, desc=title, total=len(arguments), unit="SVM")
        return svm_fit.in_threads(work, arguments, threads=threads, progress=bar)


def _is_measured(label: int, train: np.ndarray, test: np.ndarray) -> bool:
    train_positives, test_positives = train[:, label] == PRESENT, test[:, label] == PRESENT
    absent = (~test_positives & (test[:, label] != DIFFICULT)).sum()
    return (
        min(train_positives.sum(), (~train_positives).sum()) >= 2
        and test_positives.any()
        and absent > 0
    )


def _stage(job: _Job, stage: str, train: Split, test: Split) -> dict[str, Any]:
    """What `run` returns of one stage."""
    costs, machines = job.settings.costs, job.machines
    grid = [(machines, train, c, cost, job.seed) for c in job.measured for cost in costs]
    values = job.each(f"{stage}, cost", svm_fit.cross_validated, grid)
    table = np.reshape(values, (-1, len(costs)))
    best = [costs[i] for i in table.argmax(1)]  # of equal ones the lowest cost
    arguments = [(machines, train, test, c, x) for c, x in zip(job.measured, best, strict=True)]
    tested = job.each(f"{stage}, all images", svm_fit.at_cost, arguments)
    rows = [
        {
            "name": job.class_names[c],
            "positives": int((train.labels[:, c] == PRESENT).sum()),
            "cost": cost,
            "cross_validation": float(scores.max()),
            "ap": area,
            "ap_11point": points,
        }
        for c, cost, scores, (area, points) in zip(job.measured, best, table, tested, strict=True)
    ]
    return {
        "map": float(np.mean([row["ap"] for row in rows])),
        "map_11point": float(np.mean([row["ap_11point"] for row in rows])),
        "classes": rows,
        "low_shot": _low_shot(job, stage, train=train, test=test),
    }


def _low_shot(job: _Job, stage: str, train: Split, test: Split) -> list[dict[str, Any]]:
    """Per k the mean over samples of the mAP, and its standard deviation.

    Three folds of one image cannot choose a cost: as in VISSL it is the one of the highest mean mAP
    on the test split itself, one for all classes and samples of a k.
    """
    samples = range(job.settings.samples)
    draws = [(k, sample) for k in job.shots for sample in samples]
    work = [
        (job.machines, train, test, c, k, sample, job.seed)
        for k, sample in draws
        for c in job.measured
    ]
    if not work:
        return []
    areas = job.each(f"{stage}, low-shot", svm_fit.low_shot, work)
    shape = (len(job.shots), len(samples), len(job.measured), len(job.settings.costs))
    per_sample = np.reshape(areas, shape).mean(2)  # [k, sample, cost]
    rows = []
    for k, values in zip(job.shots, per_sample, strict=True):
        best = int(values.mean(0).argmax())
        maps = values[:, best]
        row = {"shots": k, "cost": job.settings.costs[best], "map": float(maps.mean())}
        rows.append(row | {"std": float(maps.std()), "samples": maps.tolist()})
    return rows


def as_text(result: Mapping[str, Any], costs: tuple[float, ...]) -> str:
    """A result for reading, in percent: mAP per stage, AP per class, low-shot rows, and notes."""
    stages = result["stages"]
    head = "".join(stage.rjust(10) for stage in stages)
    lines = [f"{'mAP':<22}{head}"]
    for name, key in (("area", "map"), ("11 points (VOC 2007)", "map_11point")):
        lines.append(_row(name, [f"{stage[key]:.2%}" for stage in stages.values()]))
    for row in zip(*(stage["classes"] for stage in stages.values()), strict=True):
        lines.append(_row(f"  {row[0]['name'][:19]}", [f"{x['ap']:.2%}" for x in row]))
    for row in zip(*(stage["low_shot"] for stage in stages.values()), strict=True):
        cells = [f"{100 * x['map']:.1f}±{100 * x['std']:.1f}" for x in row]
        lines.append(_row(f"low-shot, k = {row[0]['shots']}", cells))
    if result["left_out"]:
        lines.append(f"not measured, too few images: {', '.join(result['left_out'])}")
    if result["shots_left_out"]:
        lines.append(f"not every class has {result['shots_left_out'][0]} images that show it")
    edges = {costs[0], costs[-1]} if len(costs) > 1 else set()
    for stage, values in stages.items():
        count = sum(row["cost"] in edges for row in values["classes"])
        if count:
            lines.append(f"{stage}: {count} classes chose the lowest or highest of svm.costs")
    return "\n".join(lines)


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<22}" + "".join(cell.rjust(10) for cell in cells)
