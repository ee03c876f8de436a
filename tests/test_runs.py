"""Runs side by side: what they differ in, and how far they came."""

import json

import pytest

from mcl_jax.errors import UserError
from mcl_jax.report import metrics, runs


def make(folder, seed, losses, knn=None):
    folder.mkdir()
    config = {"seed": seed, "method": "mcl", "data": {"batch_size": 8, "split": "train"}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 0, "knn": 0.1}] if knn else []
    for step, loss in enumerate(losses, 1):
        lines.append({"step": 100 * step, "loss": loss, "images_per_s": 4.0})
    if knn:
        lines.append({"step": 100 * len(losses), "knn": knn})
    (folder / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_table_of_runs(tmp_path):
    a = make(tmp_path / "a", 0, [3.0, 2.0], knn=0.25)
    b = make(tmp_path / "b", 1, [3.0, 2.5, 1.75])
    (tmp_path / "empty").mkdir()
    lines = runs.side_by_side([a, b, tmp_path / "empty"]).splitlines()
    assert lines[0].split() == ["run", "seed", "step", "loss", "kNN", "images/s", "hours"]
    # 200 steps of 8 images at 4 images/s: 400 s
    assert lines[1].split() == [str(a), "0", "200", "2.000", "25.0%", "4", "0.11"]
    assert lines[2].split() == [str(b), "1", "300", "1.750", "-", "4", "0.17"]
    assert lines[3] == f"left out: {tmp_path / 'empty'} (no metrics)"
    with pytest.raises(UserError, match="none of .*nowhere has a metrics.jsonl"):
        runs.side_by_side([tmp_path / "empty", tmp_path / "nowhere"])


def test_one_run_says_whether_it_learned(tmp_path):
    text, learned = runs.learned(make(tmp_path / "a", 0, [3.0, 2.0], knn=0.25))
    assert learned and "10.0% untrained -> 25.0%" in text and "metrics.jsonl" in text
    text, learned = runs.learned(make(tmp_path / "b", 0, [2.0, 3.0]))
    assert not learned and "not measured: the images have no labels" in text


def test_a_run_that_measures_no_knn_is_not_said_to_lack_labels(tmp_path):
    folder = make(tmp_path / "a", 0, [3.0, 2.0])
    config = json.loads((folder / "config.json").read_text()) | {"knn": {"every_epochs": 0.0}}
    (folder / "config.json").write_text(json.dumps(config))
    text, learned = runs.learned(folder)
    assert learned and "not measured: knn.every_epochs is 0" in text and "labels" not in text
