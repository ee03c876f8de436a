"""Linear support vector machines on given features: cost by cross-validation, low-shot subsets, AP.

Shapes: n images, F features, C classes; features float64 [n, F], usually of unit length; labels
int8 [n, C] of `data.image_labels`.

The protocol is VISSL's for VOC07 (Goyal et al., 2019, section 6.1 and its code): per class one
machine against all other images, squared hinge, errors of positives counted twice. Images that are
DIFFICULT for a class count as negatives where all data train it, and are left out of low-shot
subsets and of every test. liblinear's primal solver replaces the dual one: the minimum is the same,
and it draws no random numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mcl_jax.data.image_labels import ABSENT, DIFFICULT, PRESENT
from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose


class Split(NamedTuple):
    """Features [n, F] and labels [n, C] of a split."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Machines:
    """How machines are trained; the fields are keys of `config.svm`."""

    costs: tuple[float, ...]
    folds: int
    positive_weight: float
    max_iterations: int
    tolerance: float

    def fit(self, features: np.ndarray, positive: np.ndarray, cost: float) -> Any:
        """scikit-learn's LinearSVC for bool [n] `positive`."""
        from sklearn.svm import LinearSVC

        machine = LinearSVC(
            C=cost,
            loss="squared_hinge",
            dual=False,
            class_weight={True: self.positive_weight, False: 1.0},
            max_iter=self.max_iterations,
            tol=self.tolerance,
        )
        return machine.fit(features, positive)


def check_installed() -> None:
    """UserError if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        message = 'linear SVMs need scikit-learn: pip install "mcl_jax[svm]"'
        raise UserError(message) from error


def average_precision(positive: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Average precision of one class, in [0, 1].

    Args:
      positive: bool [n], one at least.
      scores: [n], higher is more likely; equal scores are one threshold.

    Returns:
      The area under the precision-recall curve, precision at a recall being the highest one at this
      or a higher recall (VOC since 2010, and VISSL), and the mean of these precisions at recall 0,
      0.1, ..., 1 (VOC 2007).
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, scores)  # recall falls from 1 to 0
    count = int(positive.sum())
    hits = np.rint(recall * count).astype(int)  # whole numbers: no share is rounded on the way
    highest = np.maximum.accumulate(precision[:-1])
    area = -(np.diff(hits) * highest).sum() / count
    points = [highest[hits[:-1] * 10 >= k * count].max() for k in range(11)]
    return float(area), float(np.mean(points))


def cross_validated(machines: Machines, split: Split, label: int, cost: float, seed: int) -> float:
    """Mean over the folds of scikit-learn's average precision of one class at one cost.

    Folds are drawn by (seed, class), the same for every cost; each has the same share of positives.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    positive = split.labels[:, label] == PRESENT
    folds = min(machines.folds, positive.sum(), (~positive).sum())
    drawn = _generator(seed, label).integers(2**31)
    cut = StratifiedKFold(folds, shuffle=True, random_state=int(drawn))
    areas = []
    for train, test in cut.split(split.features, positive):
        machine = machines.fit(split.features[train], positive[train], cost)
        scores = machine.decision_function(split.features[test])
        areas.append(average_precision_score(positive[test], scores))
    return float(np.mean(areas))


def tested(machine: Any, test: Split, label: int) -> tuple[float, float]:
    """`average_precision` of a machine on a split, without the images that are difficult."""
    truth = test.labels[:, label]
    countable = truth != DIFFICULT
    scores = machine.decision_function(test.features)
    return average_precision(truth[countable] == PRESENT, scores[countable])


def at_cost(machines: Machines, train: Split, test: Split, label: int, cost: float):
    """`tested` of the machine that all of `train` makes at a cost."""
    positive = train.labels[:, label] == PRESENT
    return tested(machines.fit(train.features, positive, cost), test, label)


def subset(labels: np.ndarray, label: int, shots: int, sample: int, seed: int) -> np.ndarray:
    """Images of a low-shot training set of one class: k positives, (C - 1) * k negatives.

    Fewer negatives where there are not so many. The sets of a sample are nested: those of a smaller
    k are part of those of a larger one.

    Args:
      labels: [n, C].
      label: the class.
      shots: k, at most the positives there are.
      sample: number of the independent draw.
      seed: of all draws.

    Returns:
      int [m] rows, positives first.
    """
    generator = _generator(seed, label, sample + 1)
    truth = labels[:, label]
    positives = generator.permutation(np.flatnonzero(truth == PRESENT))[:shots]
    negatives = generator.permutation(np.flatnonzero(truth == ABSENT))
    return np.concatenate([positives, negatives[: (labels.shape[1] - 1) * shots]])


def low_shot(
    machines: Machines, train: Split, test: Split, label: int, shots: int, sample: int, seed: int
) -> np.ndarray:
    """Area [costs] of one class on `test`, trained on one `subset` of `train`."""
    rows = subset(train.labels, label, shots=shots, sample=sample, seed=seed)
    features, positive = train.features[rows], train.labels[rows, label] == PRESENT
    fitted = (machines.fit(features, positive, cost) for cost in machines.costs)
    return np.array([tested(machine, test, label)[0] for machine in fitted])


def in_threads(
    work: Callable, arguments: Sequence[tuple], threads: int, progress: Callable
) -> list[Any]:
    """work(*arguments[i]) for every i, in order; liblinear and BLAS let other threads run.

    Args:
      threads: at a time.
      progress: wraps the iterable of results, as tqdm does.
    """
    from joblib import Parallel, delayed

    parallel = Parallel(threads, backend="threading", return_as="generator")
    return list(progress(parallel(delayed(work)(*each) for each in arguments)))


def _generator(*numbers: int) -> np.random.Generator:
    """Of (seed, class[, sample])."""
    return np.random.default_rng((Purpose.PROBE, *numbers))
