"""The study's bookkeeping: rows, claims, resumption, the table between its marks."""

import fcntl
import json
from types import SimpleNamespace

import pytest
from mcl_jax.configs import study_scenes

from mcl_jax.errors import UserError
from mcl_jax.objectives.build import make_objective
from mcl_jax.runtime.health import TrainingStopped
from mcl_jax.study import study


@pytest.fixture
def config():
    return study_scenes.get_config()


def test_every_row_is_a_configuration_that_builds(config):
    seen = {}
    for row, seed in study.runs(config, []):
        plain = study.config_of_run(config, row, seed)
        assert plain["seed"] == seed and "study" not in plain
        if seed == 0:
            seen[row] = make_objective(plain, plain["data"]["batch_size"], None)
    assert list(seen) == list(config.study.rows) and set(seen) == set(config.study.differs)
    assert {type(x).__name__ for x in seen.values()} == {
        *("MCL", "Supervised", "BYOL", "MoCo", "DetCo")
    }
    assert [len(seen[f"mcl_s{n}"].spans) for n in (1, 2, 3)] == [1, 2, 3]


def test_rows_share_everything_that_is_not_their_method(config):
    allowed = {"method", "montage", "loss", "supervised", "ema", "seed"}
    base = study.config_of_run(config, "mcl", 0)
    for row in config.study.rows:
        own = study.config_of_run(config, row, 0)
        assert {key for key in base if base[key] != own[key]} <= allowed, row


def test_all_rows_come_once_before_the_second_seed(config):
    order = list(study.runs(config, ["mcl", "byol"]))
    assert order[:3] == [("byol", 0), ("mcl", 0), ("byol", 1)] and len(order) == 2 * 3
    assert list(study.runs(config, ["mcl_b"])) == [("mcl_b", 0)]  # not a main row: one seed
    with pytest.raises(UserError, match="row 'simclr' is not in the study: random, supervised"):
        list(study.runs(config, ["simclr"]))


def test_a_misspelt_key_of_a_row_is_an_error(config):
    config.study.differs.mcl = {"montage": {"level": 3}}
    with pytest.raises(UserError, match="study.differs.mcl.montage.level is no key"):
        study.config_of_run(config, "mcl", 0)


def test_finished_and_claimed_runs_are_left_alone(config, tmp_path, monkeypatch):
    done = []

    def measure(config, row, seed, folder):
        done.append((row, seed))
        return {"row": row, "config": study.fingerprint(study.config_of_run(config, row, seed))}

    monkeypatch.setattr(study, "measure", measure)
    results, workdir = tmp_path / "results", tmp_path / "work"
    results.mkdir()
    assert study.complete(config, "mcl", 1, workdir, results)
    assert json.loads((results / "mcl-seed1.json").read_text())["row"] == "mcl"
    assert not study.complete(config, "mcl", 1, workdir, results)  # finished
    claim = workdir / "byol-seed0" / "running"
    claim.parent.mkdir()
    with claim.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as another process would hold it
        assert not study.complete(config, "byol", 0, workdir, results)
    assert study.complete(config, "byol", 0, workdir, results)  # its owner is gone
    assert done == [("mcl", 1), ("byol", 0)]
    config.data.threads, config.numerics.remat = 7, True  # change no number
    assert not study.complete(config, "mcl", 1, workdir, results)
    config.optimizer.epochs = 1.0
    with pytest.raises(UserError, match="mcl-seed1.json was made with another configuration"):
        study.complete(config, "mcl", 1, workdir, results)


def test_a_run_that_was_stopped_leaves_no_result_and_ends_the_study(config, tmp_path, monkeypatch):
    monkeypatch.setattr(study.train, "pretrain", lambda *_: SimpleNamespace(step=3))
    with pytest.raises(study.Stopped):
        study.complete(config, "mcl", 0, tmp_path / "work", tmp_path)
    assert not list(tmp_path.glob("*.json*"))


def test_a_run_that_fails_is_recorded_with_its_reason(config, tmp_path, monkeypatch):
    def pretrain(*_):
        raise TrainingStopped("loss is nan at step 7")

    monkeypatch.setattr(study.train, "pretrain", pretrain)
    assert study.complete(config, "mcl", 0, tmp_path / "work", tmp_path)
    (result,) = study.read(tmp_path)
    assert result["failed"] == "loss is nan at step 7" and result["scores"] == {}
    assert "| mcl | 1 | - |" in study.table([result], ["mcl"])


def test_the_table_gives_mean_and_deviation_in_the_studys_order():
    finished = [
        {"row": "mcl", "scores": {"knn": 0.5, "backbone/ap": 0.1}},
        {"row": "mcl", "scores": {"knn": 0.6, "backbone/ap": 0.2}},
        {"row": "byol", "scores": {"knn": 0.4}},
    ]
    text = study.table(finished, ["byol", "mcl", "moco"])
    neighbors, detection = (
        [line for line in part.splitlines() if line.startswith("|")]
        for part in text.split("### Detection")
    )
    assert len(neighbors) == len(detection) == 4
    assert neighbors[0].count("|") == neighbors[3].count("|")
    assert neighbors[2].startswith("| byol | 1 | 40.0 | - |")
    assert neighbors[3].startswith("| mcl | 2 | 55.0 ± 7.1 | - |")  # 7.07 = 10 / sqrt(2)
    assert detection[3].startswith("| mcl | 2 | 15.0 ± 7.1 | - |")
    assert detection[2].startswith("| byol | 1 | - |")


def test_the_words_around_the_table_stay(tmp_path):
    document = tmp_path / "study.md"
    document.write_text(f"before\n{study.MARKS[0]}\nold\n{study.MARKS[1]}\nafter\n")
    study.write_table(document, "| new |\n")
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| new |" in text and "old" not in text
    document.write_text("no marks")
    with pytest.raises(UserError, match="lacks the marks"):
        study.write_table(document, "")
    assert document.read_text() == "no marks"
