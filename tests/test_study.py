"""The study's bookkeeping: rows, claims, resumption, results."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import command_line
import cv2
import numpy as np
import pytest
from conftest import shrink_networks

from mcl_jax.configs import study_photos, study_scenes
from mcl_jax.errors import UserError
from mcl_jax.objectives.build import make_objective
from mcl_jax.runtime import lease, storage
from mcl_jax.runtime.health import TrainingStopped
from mcl_jax.study import rows, runs, table

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def config():
    return study_scenes.get_config()


def test_every_row_is_a_configuration_that_builds(config):
    seen = {}
    for row, seed in rows.runs(config, []):
        plain = rows.config_of_run(config, row, seed)
        assert plain["seed"] == seed and "study" not in plain
        if seed == 0:
            seen[row] = make_objective(plain, plain["data"]["batch_size"], norm_axis=None)
    assert list(seen) == list(config.study.rows) and set(seen) == set(config.study.differs)
    assert {type(x).__name__ for x in seen.values()} == {
        *("MCL", "Supervised", "BYOL", "MoCo", "DetCo")
    }
    assert [len(seen[f"mcl_s{n}"].spans) for n in (1, 2, 3)] == [1, 2, 3]


def test_rows_share_everything_that_is_not_their_method(config):
    allowed = {"method", "montage", "loss", "supervised", "ema", "seed"}
    base = rows.config_of_run(config, "mcl", 0)
    for row in config.study.rows:
        own = rows.config_of_run(config, row, 0)
        assert {key for key in base if base[key] != own[key]} <= allowed, row


def test_all_rows_come_once_before_the_second_seed(config):
    order = list(rows.runs(config, ["mcl", "byol"]))
    assert order[:3] == [("byol", 0), ("mcl", 0), ("byol", 1)] and len(order) == 2 * 3
    assert list(rows.runs(config, ["mcl_b"])) == [("mcl_b", 0)]  # not a main row: one seed
    with pytest.raises(UserError, match="row 'simclr' is not in the study: random, supervised"):
        list(rows.runs(config, ["simclr"]))


def test_a_misspelt_key_of_a_row_is_an_error(config):
    config.study.differs.mcl = {"montage": {"level": 3}}
    with pytest.raises(UserError, match="differs.mcl: no key montage.level; did you mean .*levels"):
        rows.config_of_run(config, "mcl", 0)


def test_finished_and_claimed_runs_are_left_alone(config, tmp_path, monkeypatch):
    done = []

    def measure(config, row, seed, folder, owner):
        done.append((row, seed))
        config_of_run = rows.config_of_run(config, row, seed)
        return {"row": row, "seed": seed, "config": rows.fingerprint(config_of_run), "scores": {}}

    monkeypatch.setattr(runs, "measure", measure)

    def hold(folder, held, until):
        with lease.hold(folder):
            held.set()
            until.wait()

    held, done_holding = threading.Event(), threading.Event()
    results, workdir = tmp_path / "results", tmp_path / "work"
    results.mkdir()
    assert runs.complete(config, "mcl", 1, workdir=workdir, results=results)
    assert json.loads((results / "mcl-seed1.json").read_text())["row"] == "mcl"
    assert not runs.complete(config, "mcl", 1, workdir=workdir, results=results)  # finished
    thread = threading.Thread(target=hold, args=(workdir / "byol-seed0", held, done_holding))
    thread.start()
    held.wait()
    assert not runs.complete(config, "byol", 0, workdir=workdir, results=results)
    done_holding.set()
    thread.join()
    assert runs.complete(config, "byol", 0, workdir=workdir, results=results)  # its owner is gone
    assert done == [("mcl", 1), ("byol", 0)]
    config.data.threads, config.numerics.remat = 7, True  # change no number
    assert not runs.complete(config, "mcl", 1, workdir=workdir, results=results)
    config.optimizer.epochs = 1.0
    with pytest.raises(UserError, match="mcl-seed1.json was made with another configuration"):
        runs.complete(config, "mcl", 1, workdir=workdir, results=results)


def test_a_run_that_was_stopped_leaves_no_result_and_ends_the_study(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.train, "pretrain", lambda *_, **__: SimpleNamespace(step=3))
    with pytest.raises(runs.StudyStopped):
        runs.complete(config, "mcl", 0, workdir=tmp_path / "work", results=tmp_path)
    assert not list(tmp_path.glob("*.json*"))


def test_a_run_that_fails_is_recorded_with_its_reason(config, tmp_path, monkeypatch):
    def pretrain(*_, **__):
        raise TrainingStopped("loss is nan at step 7")

    monkeypatch.setattr(runs.train, "pretrain", pretrain)
    assert runs.complete(config, "mcl", 0, workdir=tmp_path / "work", results=tmp_path)
    (result,) = table.read(tmp_path)
    assert result["failed"] == "loss is nan at step 7" and result["scores"] == {}
    assert "| mcl | 1 | - |" in table.table([result], config)


def test_finished_rows_are_of_todays_configuration():
    """Else the study's command would refuse to go on with them."""
    finished = table.read(REPO / "docs/study/cpu")
    config = study_photos.get_config("cpu")
    assert finished
    for run in finished:
        assert run["config"] == rows.fingerprint(
            rows.config_of_run(config, run["row"], run["seed"])
        )


@pytest.mark.parametrize("size", study_photos.SIZES)
def test_the_comparison_on_photographs_builds_and_differs_in_methods_alone(size):
    config = study_photos.get_config(f"{size},/data/photos")
    allowed = {"method", "montage", "loss", "supervised"}
    base = rows.config_of_run(config, "mcl", 0)
    assert base["data"]["dataset"] == "folder:/data/photos/pretrain"
    for row in config.study.rows:
        own = rows.config_of_run(config, row, 0)
        make_objective(own, own["data"]["batch_size"], norm_axis=None)
        assert {key for key in base if base[key] != own[key]} <= allowed, row
    with pytest.raises(UserError, match="study_photos.py:tpu is not one of cpu, gpu"):
        study_photos.get_config("tpu")


def test_where_the_photographs_lie_is_no_part_of_a_fingerprint():
    here, there = (
        rows.fingerprint(rows.config_of_run(study_photos.get_config(f"cpu,{place}"), "mcl", 0))
        for place in ("photos", "/somewhere/else")
    )
    assert here == there
    config = study_photos.get_config()
    config.data.dataset = "folder:other"
    assert rows.fingerprint(rows.config_of_run(config, "mcl", 0)) != here


@pytest.fixture
def pack(tmp_path):
    """Ten photographs in two classes, and as many with boxes, in the comparison's form."""
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for side in ("train", "test"):
        (root / "detection" / side).mkdir(parents=True)
        images, annotations = [], []
        for i in range(10):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "detection" / side / f"{i}.png"), pixels)
            images.append({"id": i, "file_name": f"{side}/{i}.png", "height": 40, "width": 48})
            box = [4 + i, 5, 20, 16]
            annotations.append({"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": box})
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "bus"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "detection" / f"instances_{side}.json").write_text(json.dumps(content))
    for name in ("cats", "dogs"):
        (root / "pretrain" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "pretrain" / name / f"{i}.png"), pixels)
    return root


def test_the_study_runs_on_a_tiny_pack(pack, tmp_path):
    config = study_photos.get_config(f"cpu,{pack}")
    split = config.data.split
    shrink_networks(config)
    config.data.dataset, config.data.split = f"folder:{pack / 'pretrain'}", split
    config.data.batch_size, config.data.image_size, config.data.canvas_size = 16, 32, 48
    config.optimizer.epochs, config.optimizer.warmup_epochs = 1.0, 0.0
    config.knn.every_epochs, config.knn.batch_size, config.knn.shrinks = 1.0, 8, (2,)
    config.probe.image_size, config.probe.steps = 64, 2
    config.probe.batch_size, config.probe.eval_batch_size = 2, 2
    config.probe.head_channels, config.probe.head_convs = 4, 1
    config.study.labels, config.study.train_images, config.study.modes = (4, 0), 10, ("backbone",)
    results, document = tmp_path / "results", tmp_path / "study.md"
    results.mkdir()
    elsewhere = config.probe.test_folder
    config.probe.test_folder = str(pack)
    with pytest.raises(UserError, match="lacks test/0.png"):  # said before the hours of training
        runs.complete(config, "mcl_s1", 0, workdir=tmp_path / "work", results=results)
    assert not list((tmp_path / "work").rglob("checkpoints/*"))
    config.probe.test_folder = elsewhere
    for row in ("random", "mcl_s1"):
        assert runs.complete(config, row, 0, workdir=tmp_path / "work", results=results)
        assert not runs.complete(config, row, 0, workdir=tmp_path / "work", results=results)
    text = table.show(config, results, document)
    assert "| mcl_s1 | 1 |" in text and "4 labels: AP" in document.read_text()
    assert (tmp_path / "study.png").is_file()
    of_run = json.loads((results / "mcl_s1-seed0.json").read_text())
    assert of_run["images_seen"] == 32 and {"commit", "devices", "pretrain_s"} <= set(of_run)
    assert {"backbone@4/ap50", "backbone@all/ap/iou95", "knn"} <= set(of_run["scores"])


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs `mcl-jax study` on the scenes with one finished run; nothing may be trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "measure", lambda *_, **__: pytest.fail("a row is trained"))
    return lambda *words: command_line.run("study", "--config=study_scenes", *words)


def result(config, row, seed=0):
    made_with = rows.fingerprint(rows.config_of_run(config, row, seed))
    return json.dumps({"row": row, "seed": seed, "config": made_with, "scores": {"knn": 0.25}})


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rows=nosuch",), "row 'nosuch' is not in the study: random, supervised"),
        (("--document=marks.md",), "marks.md lacks the marks"),
        (("--document=bytes.md",), "bytes.md is no UTF-8 text"),
        (("--workdir=marks.md",), "--workdir 'marks.md' is a file; give a folder"),
        (("--results=old",), "old/mcl-seed0.json is not a finished run of a study: it lacks row"),
    ],
)
def test_what_a_study_cannot_use_is_refused_at_the_door(study, tmp_path, capsys, flags, message):
    (tmp_path / "marks.md").write_text("my notes")
    (tmp_path / "bytes.md").write_bytes(b"\xe9")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/mcl-seed0.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert study(*({f.split("=")[0]: f for f in ("--results=new", *flags)}.values())) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_results_in_a_bucket_are_read_and_added_to(gcs, study, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        runs, "measure", lambda config, row, seed, **_: json.loads(result(config, row, seed))
    )
    results = storage.locate("gs://mcl/study")
    storage.write(results / "random-seed0.json", result(config, "random"))
    assert study(f"--results={results}", "--rows=random,mcl", "--seed=0") == 0
    assert storage.names(results) == ["mcl-seed0.json", "random-seed0.json"]
    text = (tmp_path / "study.md").read_text()
    assert "| random | 1 | 25.0 |" in text and "| mcl | 1 | 25.0 |" in text
    assert not list(tmp_path.rglob("gs:*"))
