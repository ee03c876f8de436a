"""The kNN monitor end to end: sizes, broken and unlabeled images, and the offline script."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK_COMPILE, tiny_config

from mcl_jax import program, sharding
from mcl_jax.errors import UserError
from mcl_jax.evaluate import monitor
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.encoder import Encoder
from mcl_jax.models.layers import Numerics
from mcl_jax.models.pyramid import assigned_spans
from mcl_jax.runtime import checkpoint
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState

REPO = Path(__file__).resolve().parent.parent
NUMERICS = Numerics(jnp.float32, 0.9, bn_epsilon=1e-5, axis_name=sharding.DATA_AXIS)
COLORS = {"blue": (200, 30, 30), "green": (30, 200, 30), "red": (30, 30, 200)}
PER_CLASS = 7


class MeanColor(nn.Module):
    """An encoder without parameters to train or statistics, blind to images below 16 px: it sees
    one only if the canvas is not made of copies of something smaller."""

    numerics: Numerics

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def stage5(self, images):
        assert self.numerics.axis_name is None  # nothing is to be synchronized here
        color = self.scale * images.mean((1, 2))
        copies = jnp.all(images[:, :8] == images[:, 8:16], axis=(1, 2, 3))
        return jnp.where(copies[:, None], 1.0, color)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """7 images of each of three colors; one of the last is broken."""
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for i in range(PER_CLASS):
            # a shade of its own per image, so that an image can be told from its class
            pixels = np.array(color) + rng.integers(-30, 31, 3) + rng.integers(-9, 10, (40, 40, 1))
            cv2.imwrite(str(root / name / f"{i}.png"), pixels.clip(0, 255).astype(np.uint8))
    (root / "red" / "3.png").write_text("<html>")
    return root


@pytest.fixture
def config(folder):
    config = tiny_config()
    config.data.dataset = f"folder:{folder}"
    config.data.image_size = 32
    config.data.max_unreadable_share = 0.5
    config.knn.every_epochs = 1.0
    config.knn.bank_split = config.knn.query_split = "train"
    config.knn.batch_size = 8
    config.knn.neighbors = 3
    return config


def a_run(config):
    objective = SimpleNamespace(encoder=MeanColor(NUMERICS), trained_levels=())
    mesh = sharding.make_mesh()
    return SimpleNamespace(
        config=config, mesh=mesh, objective=objective, total_steps=5, steps_per_epoch=2
    )


def labeled(label):
    return [SimpleNamespace(label=label)]


STATE = SimpleNamespace(params={"encoder": {"scale": jnp.ones(())}}, batch_stats={})


def test_monitor_measures_every_size_that_leaves_eight_pixels(config):
    watch = monitor.KnnMonitor(a_run(config), labeled(0))
    assert [step for step in range(1, 6) if watch.due(step)] == [2, 4, 5]
    values = watch.evaluate(STATE)
    readable = 3 * PER_CLASS - 1
    # copies of 16 px keep an image's mean color; those of 8 px all look alike and find the first
    assert values == {
        "knn": 1.0,
        "knn/shrink2": 1.0,
        "retrieval/shrink2": 1.0,
        "knn/shrink4": pytest.approx(values["knn/shrink4"]),
        "retrieval/shrink4": 1 / readable,
    }
    assert values["knn/shrink4"] in (7 / readable, 6 / readable)  # one class for all


def test_only_the_first_images_count_and_no_shrinks_is_off(config):
    config.knn.max_images = 9  # the blue ones and two green ones, in two batches
    config.knn.shrinks = ()
    config.knn.neighbors = 5
    values = monitor.KnnMonitor(a_run(config), labeled(0)).evaluate(STATE)
    assert values == {"knn": pytest.approx(1.0)}
    config.knn.temperature = 100.0  # even votes: three blue ones against two green ones
    values = monitor.KnnMonitor(a_run(config), labeled(0)).evaluate(STATE)
    assert values == {"knn": pytest.approx(7 / 9)}


def test_images_without_labels(config, folder, caplog):
    config.data.dataset = f"folder:{folder / 'red'}"
    watch = monitor.KnnMonitor(a_run(config), labeled(-1))
    assert "no labels" in caplog.text
    assert not watch.due(5) and watch.evaluate(STATE) == {}
    with pytest.raises(UserError, match="'train' of folder:.*red has no labels"):
        monitor.KnnMonitor(a_run(config), labeled(0))


def test_queries_that_would_be_too_small_are_left_out():
    assert monitor.shrink_factors((2, 4, 8), 32) == (2, 4)  # 4 px are too few


def test_a_split_without_images_switches_knn_off(config, folder, tmp_path, caplog):
    """Four labeled images and the splits of configs/folder.py: the last tenth is empty."""
    for path in [f"{color}/{i}.png" for color in ("red", "green") for i in (0, 1)]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(folder / path, tmp_path / path)
    config.data.dataset = f"folder:{tmp_path}"
    config.knn.bank_split, config.knn.query_split = "train[:90%]", "train[90%:]"
    watch = monitor.KnnMonitor(a_run(config), labeled(0))
    assert "is empty: it holds" in caplog.text and "kNN accuracy is not measured" in caplog.text
    assert len(caplog.records) == 1
    assert not watch.due(5) and watch.evaluate(STATE) == {}


def script(*arguments):
    return subprocess.run(
        [sys.executable, REPO / "scripts/knn.py", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILE},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of some method: a backbone, and what the script has no need of."""
    config = tiny_config()
    config.model.backbone = "resnet18"  # a sub-process knows no network of conftest
    config.data.image_size = 32
    config.data.max_unreadable_share = 0.5
    encoder = Encoder(fill(Architecture, config.model), NUMERICS)
    spans = assigned_spans((1,) * 4)
    variables = jax.eval_shape(
        lambda key: encoder.init(
            key, jnp.zeros((4, 32, 32, 3)), spans, sides=1, full=True, train=True
        ),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)  # cheaper than compiling the initializers

    def leaf(path, x):
        if path[-1].key == "kernel":
            return rng.normal(0, 0.1, x.shape).astype(x.dtype)
        return rng.uniform(0.5, 1.5, x.shape).astype(x.dtype)

    variables = jax.tree_util.tree_map_with_path(leaf, variables)
    state = TrainState(
        step=jnp.asarray(7),
        params={"encoder": variables["params"], "predictor": {"kernel": jnp.zeros(3)}},
        batch_stats={"encoder": variables["batch_stats"]},
        target_params={},
        target_batch_stats={},
        opt_state={},
        memory={},
    )
    meta = {"config": program.plain_config(config)}
    meta["config"]["knn"]["shrinks"] = [2]
    for section, key in (("knn", "temperature"), ("numerics", "bn_devices")):
        meta["config"][section].pop(key)  # a checkpoint older than the key
    folder = tmp_path_factory.mktemp("run")
    checkpoint.write(folder, state, meta)
    return folder


def test_the_script_evaluates_a_checkpoint(workdir, folder, tmp_path):
    path = tmp_path / "knn.json"
    flags = [f"--workdir={workdir}", f"--dataset=folder:{folder}", f"--json={path}"]
    splits = ["--bank_split=train", "--query_split=train[:60%]"]
    done = script(*flags, *splits, "--neighbors=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["step"] == 7
    assert result["config"]["neighbors"] == 1 and result["config"]["temperature"] == 0.07
    values = result["values"]
    read_at_levels = {"knn/P5", "knn/P4", "retrieval/P4"}  # the method trained the pyramid
    assert set(values) == {"knn", "knn/shrink2", "retrieval/shrink2"} | read_at_levels
    assert values["knn"] == 1  # the queries are in the bank
    assert f"{values['knn/shrink2']:.1%}   {values['retrieval/shrink2']:>9.1%}" in done.stdout

    unlabeled = script(*flags[:1], f"--dataset=folder:{folder / 'red'}", "--query_split=train")
    assert unlabeled.returncode == 2 and "Traceback" not in unlabeled.stderr
    assert "has no labels" in unlabeled.stderr.strip().splitlines()[-1]
