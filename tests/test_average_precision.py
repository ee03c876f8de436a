"""Average precision of detections: hand-made perfect, empty, loose and wrong ones."""

import numpy as np
import pytest

from mcl_jax.evaluate.detection.average_precision import average_precision
from mcl_jax.evaluate.detection.boxed_images import Truth
from mcl_jax.evaluate.detection.nms import Detections

NAMES = {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap/a", "ap/b"}
NAMES |= {f"ap/iou{iou}" for iou in range(50, 100, 5)}


def perfect(truth):
    scores = np.where(truth.labels >= 0, 0.9, 0.0)
    return Detections(truth.boxes, np.maximum(truth.labels, 0), scores)


def sized(sides, labels, ignored=None):
    """One image for each square."""
    boxes = np.array([[[1, 1, 1 + side, 1 + side]] for side in sides], np.float32)
    ignored = np.zeros(len(sides)) if ignored is None else np.array(ignored)
    return Truth(boxes, np.array(labels, np.int32)[:, None], ignored.astype(bool)[:, None])


def measure(truth, found):
    return average_precision(truth, found, class_names=("a", "b"), area_bounds=(10.0, 20.0))


def test_perfect_detections_score_one_and_none_score_zero(capsys):
    truth = sized([5, 15, 25, 26], [0, 1, 0, 1])
    # pycocotools adds an epsilon to the denominator of a precision
    assert measure(truth, perfect(truth)) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    found = perfect(truth)
    nothing = found._replace(scores=np.zeros_like(found.scores))
    assert set(measure(truth, nothing).values()) == {0.0}
    assert capsys.readouterr().out == ""


def test_sizes_and_classes_are_told_apart():
    truth = sized([5, 15, 25], [0, 1, 0])
    found = perfect(truth)
    scores = found.scores.copy()
    scores[1] = 0.0
    result = measure(truth, found._replace(scores=scores))
    names = ("ap_small", "ap_medium", "ap_large", "ap/a", "ap/b", "ap")
    assert [result[name] for name in names] == pytest.approx([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])


def test_ignored_boxes_count_neither_for_nor_against():
    truth = sized([15, 15, 15], [0, 0, 1], [False, True, False])
    found = perfect(truth)
    assert measure(truth, found)["ap"] == pytest.approx(1.0)
    scores = found.scores.copy()
    scores[1] = 0.0  # missing it costs nothing
    assert measure(truth, found._replace(scores=scores))["ap"] == pytest.approx(1.0)


def test_loose_boxes_and_wrong_labels_cost():
    truth = sized([20, 20], [0, 1])
    found = perfect(truth)
    loose = found.boxes + np.array([0, 0, 0, 8], np.float32)  # IoU 20 / 28 = 0.71
    result = measure(truth, found._replace(boxes=loose))
    assert result["ap50"] == pytest.approx(1.0) and result["ap75"] == 0.0
    assert result["ap"] == pytest.approx(5 / 10)  # .50 to .70
    by_iou = [result[f"ap/iou{iou}"] for iou in range(50, 100, 5)]
    assert by_iou == pytest.approx([1.0] * 5 + [0.0] * 5)
    assert np.isnan(result["ap_small"])
    assert measure(truth, found._replace(labels=1 - found.labels))["ap"] == 0.0
