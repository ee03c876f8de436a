"""What a study shows: its tables between their marks, and its pictures."""

import itertools
from pathlib import Path

import cv2
import pytest

from mcl_jax.configs import study_scenes
from mcl_jax.errors import UserError
from mcl_jax.study import figures, table

REPO = Path(__file__).resolve().parent.parent
MODES, BUDGETS = ("backbone", "tuned"), ("110", "all")


@pytest.fixture
def config():
    return study_scenes.get_config()


def test_a_result_of_version_0_1_0_has_its_row_in_the_tables():
    finished = table.read(REPO / "tests/data/study_0.1.0")  # of commit b78ee1a, on scenes
    lines = table.table(finished, study_scenes.get_config()).splitlines()
    cells = [line.split(" | ")[2:] for line in lines if line.startswith("| mcl_s1 | 1 | ")]
    neighbors, frozen, _, tuned = cells
    assert neighbors[:2] == ["31.5", "15.8"] and frozen[:2] == ["4.3", "11.6"] and tuned[0] == "8.9"


def test_the_table_gives_mean_and_deviation_in_the_studys_order(config):
    finished = [
        {"row": "mcl", "scores": {"knn": 0.5, "backbone@all/ap": 0.1}},
        {"row": "mcl", "scores": {"knn": 0.6, "backbone@all/ap": 0.2}},
        {"row": "byol", "scores": {"knn": 0.4}},
    ]
    config.study.modes = ("backbone",)
    text = table.table(finished, config)
    neighbors, detection = (
        [line for line in part.splitlines() if line.startswith("|")]
        for part in text.split("### Detection")
    )
    assert len(neighbors) == len(detection) == 4
    assert neighbors[0].count("|") == neighbors[3].count("|")
    assert neighbors[2].startswith("| byol | 1 | 40.0 |")
    assert neighbors[3].startswith("| mcl | 2 | 55.0 ± 7.1 |")  # 7.07 = 10 / sqrt(2)
    assert detection[3].startswith("| mcl | 2 | 15.0 ± 7.1 |")
    assert detection[2].startswith("| byol | 1 | - |")


def test_gains_are_within_a_seed(config):
    def result(row, seed, ap):
        return {"row": row, "seed": seed, "scores": {"backbone@all/ap": ap}}

    config.study.modes, config.study.labels = ("backbone",), (0,)
    finished = [result("random", 0, 0.01), result("random", 1, 0.03)]
    assert table.gains(finished, config) == ""
    finished += [result("mcl", 1, 0.05), result("mcl", 0, 0.02), result("mcl", 2, 0.9)]
    finished += [result("byol", 1, 0.02), {"row": "moco", "seed": 0, "scores": {"knn": 0.5}}]
    title, *rows = table.gains(finished, config).strip().splitlines()
    assert title == "### Detection, AP above random, within a seed"
    assert rows[1] == "| row | seeds | backbone, all labels |"
    assert rows[3:] == ["| byol | 1 | -1.0 |", "| moco | 1 | - |", "| mcl | 2 | 1.5 (1.0, 2.0) |"]


def test_the_readmes_figures_are_the_results_means():
    names = {
        "random weights": "random",
        "BYOL": "byol",
        "MoCo v2": "moco",
        "DetCo": "detco",
        "MCL with one level": "mcl_s1",
        "MCL": "mcl",
        "classification with all labels": "supervised",
    }
    finished = table.read(REPO / "docs/study/cpu")
    lines = (
        (REPO / "README.md").read_text().partition("| the network starts from |")[2].splitlines()
    )
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:9]]
    assert [cells[0] for cells in rows] == list(names)
    for label, *cells in rows:
        runs = [result["scores"] for result in finished if result["row"] == names[label]]
        for cell, (mode, budget) in zip(cells, itertools.product(MODES, BUDGETS), strict=True):
            mean = 100 * sum(scores[f"{mode}@{budget}/ap"] for scores in runs) / len(runs)
            assert cell == f"{mean:.1f}", (label, mode, budget)


def test_the_words_around_the_table_stay(tmp_path):
    document = tmp_path / "study.md"
    document.write_text(f"before\n{table.MARKS[0]}\nold\n{table.MARKS[1]}\nafter\n")
    table.write_table(document, "| new |\n")
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| new |" in text and "old" not in text
    document.write_text("no marks")
    with pytest.raises(UserError, match="lacks the marks"):
        table.write_table(document, "")
    assert document.read_text() == "no marks"


def test_pictures_hold_what_is_finished(tmp_path):
    def result(row, seed, ap):
        scores = {f"{mode}@{n}/ap": ap for mode in ("backbone", "tuned") for n in ("110", "all")}
        scores |= {f"tuned@all/ap/iou{iou}": ap * (1 - iou / 100) for iou in figures.IOUS}
        return {"row": row, "seed": seed, "scores": scores}

    finished = [result("random", 0, 0.02), result("mcl", 0, 0.04), result("mcl", 1, 0.05)]
    names, counts = ["random", "byol", "mcl"], {"110": 110, "all": 1106}
    modes = ("backbone", "tuned")
    figures.against_labels(
        tmp_path / "labels.png", finished, rows=names, modes=modes, counts=counts
    )
    figures.gains_by_iou(
        tmp_path / "iou.png", finished, rows=names, name="tuned@all", control="random"
    )
    for name in ("labels.png", "iou.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5  # not one color
    with pytest.raises(UserError, match="no finished run of the control 'byol'"):
        figures.gains_by_iou(
            tmp_path / "iou.png", finished, rows=names, name="tuned@all", control="byol"
        )
