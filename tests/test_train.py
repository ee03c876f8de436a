"""The training program as users run it: sub-processes, kill -9, SIGTERM, typing errors."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_COMPILE, tiny_config
from ml_collections import ConfigDict

from mcl_jax import program, train
from mcl_jax.configs import demo
from mcl_jax.errors import UserError
from mcl_jax.faults.runs import SMALL, STEPS, losses
from mcl_jax.report import metrics
from mcl_jax.runtime import compile_cache, workdir_names

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """32 small images and one that is broken: 33 files, two steps of 16 an epoch."""
    import cv2

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(32):
        picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60))
        cv2.imwrite(str(folder / f"{i:02}.jpg"), picture)
    (folder / "broken.jpg").write_text("<html>not found</html>")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One device and one compile cache for all sub-processes."""
    cache = compile_cache.variables(tmp_path_factory.mktemp("cache"))
    return os.environ | cache | {"XLA_FLAGS": QUICK_COMPILE}


def command(workdir, images, *extra):
    return [
        sys.executable,
        str(REPO / "tests/tiny_pretrain.py"),
        "--config",
        str(REPO / "configs/demo.py"),
        f"--workdir={workdir}",
        *SMALL,
        "--config.model.backbone=resnet10",
        "--config.data.image_size=32",
        "--config.data.canvas_size=32",
        f"--config.data.dataset=folder:{images}",
        "--config.data.split=train",
        "--config.data.max_unreadable_share=0.1",
        "--config.knn.every_epochs=0.0",
        "--config.log.montages=4",
        *extra,
    ]


@pytest.fixture(scope="module")
def uninterrupted(images, environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(
        command(workdir, images, "--profile=5:6"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def test_a_run_leaves_what_the_readme_promises(uninterrupted):
    workdir, messages = uninterrupted
    assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
    last = metrics.read(workdir)[-1]
    for name in ("positive", "negative", "top1", "std", "loss"):
        assert {f"{name}/level0", f"{name}/level1"} <= set(last)
    assert {"lr", "ema", "grad_norm", "param_norm", "images_per_s", "data_wait"} <= set(last)
    page = (workdir / "card.html").read_text()
    assert f"step {STEPS} of {STEPS}" in page and page.count("data:image/png") == 2
    for name in ("montage.png", "curves.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())
    for path in workdir.iterdir():  # what is looked at before a run
        assert path.name in (workdir_names.FOLDERS if path.is_dir() else workdir_names.FILES)
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 4
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [8, 10, 12]
    assert "images/s" in messages and "broken.jpg" in messages and "\r" not in messages
    assert "http-equiv" not in page
    assert "trace of 2 steps in" in messages
    rows = messages.partition("operations:\n")[2].splitlines()[:10]
    assert len(rows) == 10 and all("% " in row and " ms " in row for row in rows)


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--config.data.batchsize=3"], "no key data.batchsize; did you mean data.batch_size?"),
        (["--config.model.backbone=resnet20"], "'resnet20'; it must be one of resnet18"),
        (["--config.data.dataset=folder:/nowhere"], "/nowhere"),
        (["--config.data.max_unreadable_share=0.0"], "broken.jpg"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(images, environment, tmp_path, extra, message):
    run = subprocess.run(
        command(tmp_path / "w", images, *extra, "--config.data.unreadable_grace=16"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    lines = run.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:] and message in errors[0], run.stderr
    assert "Traceback" not in run.stderr
    if message != "broken.jpg":  # which is found by reading it, while the run goes on
        assert not list(tmp_path.iterdir()), "something is left"
    assert not (tmp_path / "w" / "owner").exists()


@pytest.fixture
def resume(uninterrupted, tmp_path):
    """Goes on from a copy of the finished run, in this process, with other values."""
    workdir, _ = uninterrupted
    shutil.copytree(workdir / "checkpoints", tmp_path / "run" / "checkpoints")
    plain = json.loads((workdir / "config.json").read_text())

    def again(**values):
        config = ConfigDict(plain)
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        return train.pretrain(program.plain_config(config), tmp_path / "run")

    return again


def test_a_run_that_is_past_its_end_says_why(resume, images, tmp_path, caplog):
    """Half of the images deleted: never a silent 'nothing left to do'."""
    for path in sorted(images.glob("*.jpg"))[:16]:
        shutil.copy(path, tmp_path)
    with pytest.raises(UserError, match="is of step 12, but this run ends at step 6 .16 images"):
        resume(data__dataset=f"folder:{tmp_path}")
    told = [record.getMessage() for record in caplog.records]
    assert [
        line for line in told if line.startswith("changed since the checkpoint: images 33 -> 16")
    ]
    assert [line for line in told if line.startswith("changed since the checkpoint: data.dataset ")]


def test_the_end_is_still_the_end(resume, capsys, caplog):
    assert int(resume().step) == STEPS
    assert f"step {STEPS} of {STEPS}: nothing left to do" in capsys.readouterr().err
    told = [record.getMessage() for record in caplog.records]
    changed = [line for line in told if line.startswith("changed since the checkpoint: ")]
    assert all(": code " in line for line in changed)  # a commit may come in between


@pytest.mark.parametrize(
    "values, named",
    [
        ({"model__width": 8}, "model.width 4 -> 8"),
        ({"method": "byol"}, "method mcl -> byol"),
        ({"optimizer__name": "sgd", "seed": 1}, "optimizer.name adamw -> sgd"),
    ],
)
def test_a_key_that_changes_arrays_is_named_before_they_are(resume, caplog, values, named):
    with pytest.raises(UserError, match=f"does not fit this config: {named}; .* --workdir$"):
        resume(**values)
    assert f"changed since the checkpoint: {named}: " in caplog.text


def test_pretrain_is_a_door_too(tmp_path, images):
    config = demo.get_config()
    config.data.dataset = f"folder:{images}"
    config.log.keep_checkpoints = 0
    with pytest.raises(UserError, match="log.keep_checkpoints is 0"):
        train.pretrain(config, tmp_path / "run")
    config.log.keep_checkpoints, config.data.batch_size = 1, 1
    with pytest.raises(UserError, match="data.batch_size is 1: method 'mcl' tells"):
        train.pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_step_and_new_state_are_compiled_at_the_same_time(tmp_path, images, monkeypatch):
    config = tiny_config()
    config.data.dataset, config.data.split = f"folder:{images}", "train"
    config.data.batch_size, config.data.max_unreadable_share = 16, 0.1
    both = threading.Barrier(2, timeout=60.0)  # passed once both are inside

    class StepCompiler:
        def compile(self):
            both.wait()
            raise UserError("far enough")

    monkeypatch.setattr(program, "lower_step", lambda run: StepCompiler())
    monkeypatch.setattr(program, "compile_new_state", lambda run: both.wait())
    with pytest.raises(UserError, match="far enough"):
        train.pretrain(config, tmp_path / "run")
