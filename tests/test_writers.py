"""log.writers: the real packages, offline; one that fails does not end a run."""

import json
import os
import sys

import pytest

import mcl_jax
from mcl_jax import train
from mcl_jax.errors import UserError
from mcl_jax.report import metrics, writers
from mcl_jax.runtime import storage
from mcl_jax.settings.keys import WRITERS

KINDS = ("wandb", "mlflow")
CONFIG = {"seed": 1, "data": {"batch_size": 8, "split": "train"}}


def about(*names):
    return writers.About(("jsonl", *names), "own project", CONFIG)


def log(workdir, resume_step, steps, told):
    writer = metrics.MetricWriter(workdir, resume_step, enabled=True, about=told)
    for step in steps:
        writer.write(step, {"loss": 2.0 / step, "top1/level0": 0.5})
    writer.close()


def test_the_table_of_writers_is_the_settings():
    assert ("jsonl", *writers.SINKS) == WRITERS


def test_mlflow_holds_one_run_through_a_resumption(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for start, steps in ((0, (1, 2)), (2, (3,))):
        log(tmp_path, start, steps, about("mlflow"))
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = client.get_run((tmp_path / "mlflow_run.txt").read_text().strip())
    assert run.info.status == "FINISHED" and run.info.run_name == tmp_path.name
    assert run.data.params["data.batch_size"] == "8" and run.data.params["seed"] == "1"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
    assert client.get_experiment(run.info.experiment_id).name == "own project"


def test_wandb_offline_holds_one_run_through_a_resumption(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start, steps in ((0, (1, 2)), (2, (3,))):
        log(tmp_path, start, steps, about("wandb"))
    known = (tmp_path / "wandb_run.txt").read_text().strip()
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}"))
    found = [path for part in parts for path in part.glob("*.wandb")]
    content = b"".join(path.read_bytes() for path in found)
    assert found and b"top1/level0" in content and b"own project" in content


def test_runs_in_a_bucket_leave_their_offline_files_on_this_machine(gcs, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    workdir = storage.locate("gs://mcl/seen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = mcl_jax.load_config("demo", writers=("jsonl", "mlflow"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        UserError, match="'mlflow', which cannot write to gs://mcl/seen: set MLFLOW"
    ):
        train.pretrain(config, workdir)
    assert storage.names(workdir) == [] and not list(tmp_path.iterdir())

    uri = (tmp_path / "runs").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for start, steps in ((0, (1, 2)), (2, (3,))):
        log(workdir, start, steps, about("wandb", "mlflow"))
    known = {kind: storage.read(workdir / f"{kind}_run.txt").decode().strip() for kind in KINDS}
    history = MlflowClient(tracking_uri=uri).get_metric_history(known["mlflow"], "loss")
    assert [point.step for point in history] == [1, 2, 3]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{known['wandb']}/*.wandb"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "wandb"]  # none named gs:


def test_a_writer_that_fails_is_left_and_said_once(tmp_path, monkeypatch, caplog):
    class Broken:
        def __init__(self, workdir, resume_step, about):
            pass

        def write(self, step, values):
            raise ConnectionError("no\nroute")

        def close(self):
            raise AssertionError("was left")

    monkeypatch.setitem(writers.SINKS, "wandb", Broken)
    log(tmp_path, 0, (1, 2, 3), about("wandb", "tensorboard"))
    assert [record.getMessage() for record in caplog.records] == [
        "writer wandb failed, the run goes on without it: no route"
    ]
    lines = (tmp_path / metrics.FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_package_that_is_not_there_is_named(monkeypatch):
    writers.demand_installed(WRITERS)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(writers.PACKAGES, "wandb", "a_package_that_is_not_there")
    with pytest.raises(
        UserError, match=r"log.writers holds 'wandb'.*pip install 'mcl_jax\[wandb\]"
    ):
        writers.demand_installed(("jsonl", "wandb"))
