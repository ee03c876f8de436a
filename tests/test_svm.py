"""Linear SVMs: average precision, costs, low-shot subsets, and a whole evaluation of tiny images.

Shapes: n images, F features, C classes; labels int8 [n, C].
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC
from test_linear import tiny_evaluation

from mcl_jax import program
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import svm, svm_fit, svm_measure
from mcl_jax.evaluate.linear.svm_fit import Machines, Split

REPO = Path(__file__).resolve().parent.parent
MACHINES = Machines((0.01, 1.0, 100.0), 3, positive_weight=2.0, max_iterations=2000, tolerance=1e-4)
SETTINGS = svm_measure.SVMSettings(
    "train",
    "test",
    batch_size=16,
    stages=("res4", "res5"),
    costs=MACHINES.costs,
    folds=3,
    positive_weight=2.0,
    max_iterations=2000,
    tolerance=1e-4,
    shots=(1, 4),
    samples=3,
    threads=2,
)


def clusters(rng, count, classes=3, spread=0.2):
    """Features around one direction a class, and their one-hot labels."""
    label = np.arange(count) % classes
    features = np.eye(8)[label] + spread * rng.normal(size=(count, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Split(features, np.eye(classes, dtype=np.int8)[label])


def envelope(positive, scores):
    """VOC's AP by its own words, without ties: best precision at this recall or higher."""
    order = np.argsort(-scores)
    hits = positive[order].cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    best = [precision[i:].max() for i in range(len(hits))]
    area = sum(best[i] for i in np.flatnonzero(positive[order])) / positive.sum()
    precisions = [precision[hits * 10 >= k * positive.sum()].max() for k in range(11)]
    return area, np.mean(precisions)


def test_average_precision_by_hand():
    # hits at ranks 1, 4 and 5: precisions 1, 2/4, 3/5; at recall 2/3 the best one is 3/5
    positive = np.array([1, 0, 0, 1, 1], bool)
    area, points = svm_fit.average_precision(positive, -np.arange(5.0))
    assert area == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)
    assert points == pytest.approx((4 * 1 + 7 * 3 / 5) / 11)  # recalls 0, .1, .2, .3 get 1
    assert svm_fit.average_precision(positive, np.zeros(5))[0] == pytest.approx(3 / 5)  # all tied
    assert svm_fit.average_precision(positive, positive.astype(float)) == (1.0, 1.0)


def test_average_precision_is_vocs_and_scikit_learns_where_precision_only_falls():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive = rng.random(40) < 0.3
        positive[0] = True
        scores = rng.normal(size=40) + positive
        areas = svm_fit.average_precision(positive, scores)
        np.testing.assert_allclose(areas, envelope(positive, scores), rtol=1e-12)
        assert areas[0] >= average_precision_score(positive, scores) - 1e-12
    falling = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0], bool)  # 1, 1, 3/4, 4/7
    expected = average_precision_score(falling, -np.arange(10.0))
    assert svm_fit.average_precision(falling, -np.arange(10.0))[0] == pytest.approx(expected)


def test_the_chosen_cost_is_the_best_of_scikit_learns_own_search():
    split = clusters(np.random.default_rng(1), 60, spread=0.9)
    for label in range(3):
        ours = [
            svm_fit.cross_validated(MACHINES, split, label=label, cost=c, seed=5)
            for c in MACHINES.costs
        ]
        drawn = svm_fit._generator(5, label).integers(2**31)
        search = GridSearchCV(
            LinearSVC(class_weight={True: 2.0, False: 1.0}, dual=False, max_iter=2000),
            {"C": list(MACHINES.costs)},
            scoring="average_precision",
            cv=StratifiedKFold(3, shuffle=True, random_state=int(drawn)),
        ).fit(split.features, split.labels[:, label] == 1)
        np.testing.assert_allclose(ours, search.cv_results_["mean_test_score"], rtol=1e-12)
        assert MACHINES.costs[np.argmax(ours)] == search.best_params_["C"]


def test_the_primal_solver_finds_the_minimum_of_vissls_dual_one():
    split = clusters(np.random.default_rng(2), 60, spread=0.9)
    positive = split.labels[:, 0] == 1
    exact = Machines((1.0,), 3, positive_weight=2.0, max_iterations=100_000, tolerance=1e-10).fit(
        split.features, positive, 1.0
    )
    dual = LinearSVC(
        C=1.0, class_weight={1: 2, -1: 1}, dual=True, tol=1e-10, max_iter=100_000, random_state=0
    ).fit(split.features, np.where(positive, 1, -1))
    np.testing.assert_allclose(exact.coef_, dual.coef_, atol=1e-7)
    np.testing.assert_allclose(exact.intercept_, dual.intercept_, atol=1e-7)


def test_low_shot_subsets_are_nested_and_leave_difficult_images_out():
    labels = np.random.default_rng(3).integers(-1, 2, (90, 4)).astype(np.int8)
    chosen = {}
    for shots in (1, 2, 4):
        rows = svm_fit.subset(labels, 2, shots=shots, sample=0, seed=7)
        assert (labels[rows[:shots], 2] == 1).all() and (labels[rows[shots:], 2] == 0).all()
        assert len(rows) == len(set(rows)) == 4 * shots  # k positives, (C - 1) k negatives
        chosen[shots] = set(rows)
    assert chosen[1] < chosen[2] < chosen[4]
    assert chosen[4] != set(svm_fit.subset(labels, 2, shots=4, sample=1, seed=7))
    assert chosen[4] != set(svm_fit.subset(labels, 2, shots=4, sample=0, seed=8))
    assert (
        len(svm_fit.subset(labels, 2, shots=25, sample=0, seed=7)) == 25 + (labels[:, 2] == 0).sum()
    )


@pytest.fixture(scope="module")
def separable():
    rng = np.random.default_rng(4)
    train, test = clusters(rng, 45, spread=0.05), clusters(rng, 30, spread=0.05)
    mixed = [Split(x.features * [1, 1, 1, 9, 9, 9, 9, 9], x.labels) for x in (train, test)]
    return [{"res4": m, "res5": x} for m, x in zip(mixed, (train, test), strict=True)]


def test_classes_that_can_be_told_apart_reach_1(separable):
    result = svm_measure.measure(SETTINGS, 0, ("a", "b", "c"), *separable)
    stage = result["stages"]["res5"]
    assert stage["map"] == stage["map_11point"] == 1 and list(result["stages"]) == ["res4", "res5"]
    assert [row["positives"] for row in stage["classes"]] == [15, 15, 15]
    assert {row["cost"] for row in stage["classes"]} == {0.01}  # of equal ones the lowest
    assert [row["shots"] for row in stage["low_shot"]] == [1, 4]
    assert all(len(row["samples"]) == 3 and row["map"] == 1 for row in stage["low_shot"])
    lines = svm_measure.as_text(result, SETTINGS.costs).splitlines()
    assert lines[0].split() == ["mAP", "res4", "res5"] and lines[1].endswith("100.00%")
    assert "res5: 3 classes chose the lowest or highest of svm.costs" in lines


def test_the_same_seed_gives_the_same_result_whatever_the_threads(separable):
    noisy = [{"res5": Split(s["res5"].features + 0.4 * np.random.default_rng(i).normal(
        size=s["res5"].features.shape), s["res5"].labels)} for i, s in enumerate(separable)]  # fmt: skip
    names = ("a", "b", "c")
    alone = svm_measure.SVMSettings(**{**vars(SETTINGS), "threads": 1})
    first = svm_measure.measure(alone, 3, names, *noisy)
    assert first == svm_measure.measure(SETTINGS, 3, names, *noisy)
    rows = first["stages"]["res5"]["low_shot"]
    other = svm_measure.measure(SETTINGS, 4, names, *noisy)["stages"]["res5"]["low_shot"]
    assert rows != other and rows[0]["std"] == pytest.approx(np.std(rows[0]["samples"]))
    assert rows[0]["map"] < rows[1]["map"] < first["stages"]["res5"]["map"]


def test_difficult_images_train_as_negatives_and_test_nothing(separable):
    train, test = (split["res5"] for split in separable)
    # finds classes 0 and 1: of class 0 alone it is a bad judge, unless images of 1 do not count
    machine = MACHINES.fit(train.features, train.labels[:, 2] == 0, 1.0)
    hard = test.labels.copy()
    hard[hard[:, 1] == 1, 0] = -1
    assert svm_fit.tested(machine, Split(test.features, hard), 0) == (1, 1)
    assert max(svm_fit.tested(machine, test, 0)) < 1
    difficult = train.labels.copy()
    difficult[:9][difficult[:9] == 0] = -1
    for each in (Split(train.features, difficult), train):
        assert svm_fit.at_cost(MACHINES, each, test=test, label=0, cost=1.0) == (1, 1)
        scores = svm_fit.cross_validated(MACHINES, each, label=0, cost=1.0, seed=0)
        assert scores == svm_fit.cross_validated(MACHINES, train, label=0, cost=1.0, seed=0)


def test_classes_without_images_are_left_out_and_named(separable):
    train, test = ({"res5": split["res5"]} for split in separable)
    names = ("a", "b", "c")
    two = Split(train["res5"].features, train["res5"].labels * np.array([1, 1, 0], np.int8))
    result = svm_measure.measure(SETTINGS, 0, class_names=names, train={"res5": two}, test=test)
    assert result["left_out"] == ["c"] and len(result["stages"]["res5"]["classes"]) == 2
    assert "not measured, too few images: c" in svm_measure.as_text(result, SETTINGS.costs)
    many = svm_measure.SVMSettings(**{**vars(SETTINGS), "shots": (1, 16), "samples": 1})
    result = svm_measure.measure(many, 0, class_names=names, train=train, test=test)
    assert result["shots_left_out"] == [16]  # there are 15
    assert [row["shots"] for row in result["stages"]["res5"]["low_shot"]] == [1]
    nothing = Split(train["res5"].features, train["res5"].labels * 0)
    with pytest.raises(UserError, match="no class can be measured"):
        svm_measure.measure(SETTINGS, 0, class_names=names, train={"res5": nothing}, test=test)


def test_a_missing_scikit_learn_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"need scikit-learn: pip install \"mcl_jax\[svm\]\""):
        svm.open_splits(program.plain_config(tiny_evaluation("/nowhere")), None)
