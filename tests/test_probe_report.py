"""The folder of a checkpoint's probes: rows, pictures, what is finished, what is refused."""

import dataclasses
import io
import json

import jax
import matplotlib.image
import pytest
from ml_collections import ConfigDict
from test_detection import SETTINGS, Squares, squares

from mcl_jax import program, sharding
from mcl_jax.bench import probe as bench
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import report, training
from mcl_jax.evaluate.detection.data import ProbeData
from mcl_jax.runtime import storage


@pytest.fixture(scope="module")
def subject():
    from conftest import tiny_config

    config = tiny_config()
    config.probe.update(ConfigDict(dataclasses.asdict(SETTINGS)))
    return report.untrained(program.plain_config(config))


def run(subject, folder, modes=(), labels=(2, None), **conduct):
    data = ProbeData(squares(), squares(Squares()))
    return report.run(
        subject, data, output=folder, modes=modes, labels=labels, seed=0,
        mesh=sharding.make_mesh(jax.devices()[:1]), conduct=training.Conduct(**conduct),
    )  # fmt: skip


def test_rows_are_stopped_resumed_and_never_computed_twice(subject, gcs, tmp_path, capsys):
    kept = storage.locate("gs://mcl/probe")  # and those of `whole` on a disk
    with pytest.raises(training.Stopped):
        run(subject, kept, ["backbone"], stops=lambda step: step == 2)
    assert not storage.is_file(kept / "result.json")
    rows = run(subject, kept, ["backbone"])
    assert "budget of 2 images has no box" not in capsys.readouterr().err  # it has both classes
    assert [(row["mode"], row["labels"]) for row in rows] == [("backbone", 2), ("backbone", 3)]
    assert json.loads(storage.read(kept / "result.json")) == rows
    whole = run(subject, tmp_path / "whole", ["backbone"])
    assert [row["scores"] for row in rows] == [row["scores"] for row in whole]
    for name, row in zip(("backbone-2-seed0", "backbone-all-seed0"), rows, strict=True):
        assert {*storage.names(kept / name)} == {"result.json", "boxes.png"}
        picture = io.BytesIO(storage.read(kept / name / "boxes.png"))
        assert matplotlib.image.imread(picture).std() > 0.01
        assert row["scores"]["ap/iou50"] == row["scores"]["ap50"] and row["settings"]["steps"] == 3
    assert run(subject, kept, ["backbone"], stops=lambda step: pytest.fail("computed")) == rows
    assert "backbone" in report.as_text(rows) and "all" not in report.as_text(rows)
    changed = dict(subject.config) | {"probe": dict(subject.config["probe"]) | {"base_lr": 0.5}}
    other = dataclasses.replace(subject, config=changed)
    with pytest.raises(UserError, match="holds a probe with probe.base_lr 0.02, not 0.5"):
        run(other, kept, ["backbone"])


def test_modes_that_do_not_apply_and_wrong_budgets_are_told(subject, tmp_path):
    assert report.applicable(subject) == ("backbone", "tuned")
    whole = dataclasses.replace(
        subject,
        variables={"params": {"backbone": {}, "fpn": {}}, "batch_stats": {}},
        levels=frozenset({"P4", "P5"}),
    )
    assert report.applicable(whole) == ("backbone", "backbone+fpn", "tuned")
    partly = dataclasses.replace(whole, levels=frozenset({"P5"}))
    assert report.applicable(partly) == ("backbone", "tuned")
    with pytest.raises(UserError, match="random weights did not train all of P4, P5; use backbone"):
        run(subject, tmp_path / "a", ["backbone+fpn"])
    with pytest.raises(UserError, match="a budget of 9 labeled images: the set has 3"):
        run(subject, tmp_path / "a", labels=(2, 9))
    assert not (tmp_path / "a").exists()
    assert report.budgets(["50", "all", "50"]) == (50, None)
    for wrong in (["many"], ["0"], ["-1"], []):
        with pytest.raises(UserError, match="--labels"):
            report.budgets(wrong)


def test_a_budget_without_a_class_is_named(subject, tmp_path, capsys):
    with pytest.raises(training.Stopped):
        run(subject, tmp_path, ["backbone"], labels=(1,), stops=lambda step: True)
    assert "warning: the budget of 1 images has no box of b" in capsys.readouterr().err


def test_the_bench_times_probe_and_network(subject):
    mesh = sharding.make_mesh(jax.devices()[:1])
    result = bench.compare(subject.config, "tuned", 1, mesh)
    for name in ("train", "forward_backward", "test", "forward"):
        assert result[name]["images_per_s"] > 0 and result[name]["cpu_s_per_image"] > 0
    assert set(result) >= {"train_adds", "test_adds"}
