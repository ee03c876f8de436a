"""Linear evaluation: the classifiers against numpy and torch, and whole evaluations on tiny images."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK_COMPILE, perturbed, tiny_config

from mcl_jax import program, sharding
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import classifier, loop
from mcl_jax.evaluate.linear import evaluation as linear
from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.layers import Context, Numerics
from mcl_jax.report import metrics
from mcl_jax.runtime import checkpoint
from mcl_jax.state import TrainState

REPO = Path(__file__).resolve().parent.parent


def write_images(folder):
    """Six colors as classes, eight 40 x 32 px images each, and one file that is broken."""
    rng = np.random.default_rng(0)
    for k in range(6):
        (folder / f"class{k}").mkdir(parents=True)
        color = rng.integers(40, 216, 3)
        for i in range(8):
            picture = np.clip(color + rng.normal(0, 25, (32, 40, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"class{k}" / f"{i}.png"), picture)
    (folder / "class3" / "broken.png").write_text("<html>not found</html>")


def tiny_evaluation(folder, backbone="resnet10"):
    config = tiny_config()
    config.data.dataset = f"folder:{folder}"
    config.data.image_size = 32
    config.data.canvas_size = 40
    config.data.max_unreadable_share = 0.5
    config.model.backbone = backbone
    config.log.every_steps = 1
    config.linear.test_split = "train"
    config.linear.batch_size = 16
    config.linear.lrs = (0.001, 0.01)
    config.linear.epochs = 20.0
    return config


def tiny_backbone(config):
    """Random weights without compiling an initialization."""
    sizes = {field.name: config.model[field.name] for field in dataclasses.fields(Architecture)}
    network = make_backbone(
        Architecture(**sizes), Numerics(jnp.float32, 0.9, bn_epsilon=1e-5, axis_name=None)
    )
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(
        lambda key: network.init(key, image, Context((1,), train=False)), jax.random.key(0)
    )
    rng = np.random.default_rng(0)

    def leaf(path, x):
        if path[-1].key in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        fan_in = np.prod(x.shape[:-1])
        return rng.normal(0, np.sqrt(2 / fan_in), x.shape).astype(x.dtype)

    return perturbed(jax.tree_util.tree_map_with_path(leaf, shapes))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    write_images(folder)
    config = tiny_evaluation(folder)
    mesh = sharding.make_mesh(jax.devices()[:2])
    return linear.build(config, tiny_backbone(config), mesh)


@pytest.fixture(scope="module")
def whole(evaluation, tmp_path_factory):
    output = tmp_path_factory.mktemp("linear") / "whole"
    return loop.run(evaluation, output), output


def saved(output):
    with np.load(output / "classifiers.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_an_evaluation_reports_every_learning_rate_and_the_best(evaluation, whole):
    result, output = whole
    assert json.loads((output / "result.json").read_text()) == result
    assert (result["train_images"], result["test_images"], result["classes"]) == (49, 48, 6)
    assert [row["lr"] for row in result["rows"]] == [0.001, 0.01]
    assert result["best"]["top1"] == max(row["top1"] for row in result["rows"])
    assert result["best"]["top1"] > 0.5  # plain colors, chance is 1/6
    assert all(row["top1"] <= row["top5"] <= 1 for row in result["rows"])
    lines = metrics.read(output)
    last = evaluation.total_steps
    assert [line["step"] for line in lines] == [*range(1, last + 1), last]
    assert lines[-1]["top1/lr0.01"] == result["rows"][1]["top1"]
    assert lines[-2]["loss/lr0.01"] < lines[0]["loss/lr0.01"] == pytest.approx(np.log(6), rel=1e-6)
    table_lines = loop.as_text(result).splitlines()
    assert table_lines[0].split() == ["lr", "top-1", "top-5"] and len(table_lines) == 3
    assert [line.endswith("best") for line in table_lines].count(True) == 1


def test_a_killed_evaluation_goes_on_bit_by_bit(evaluation, whole, tmp_path):
    calls = []

    def dies_in_step_8(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return evaluation.train_step(*arguments)

    with pytest.raises(KeyboardInterrupt):
        loop.run(dataclasses.replace(evaluation, train_step=dies_in_step_8), tmp_path)
    assert int(saved(tmp_path)["step"]) == 6  # three steps an epoch, saved after each epoch
    assert loop.run(evaluation, tmp_path) == whole[0]
    after, expected = saved(tmp_path), saved(whole[1])
    assert set(after) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(after[name], expected[name], err_msg=name)
    assert metrics.read(tmp_path) == metrics.read(whole[1])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_finished_evaluation_is_not_repeated_nor_mixed_with_another(evaluation, whole):
    result, output = whole

    def never(*_):
        raise AssertionError("nothing is left to do")

    finished = dataclasses.replace(evaluation, train_step=never, test_step=never)
    assert loop.run(finished, output) == result
    other = dataclasses.replace(
        evaluation, settings=dataclasses.replace(evaluation.settings, momentum=0.5)
    )
    with pytest.raises(UserError, match="linear.momentum 0.9, not 0.5; give a new --output"):
        loop.run(other, output)


def test_crops_and_gradients_do_not_depend_on_the_number_of_devices(evaluation):
    alone = linear.build(
        evaluation.config,
        jax.device_get(evaluation.backbone),
        sharding.make_mesh(jax.devices()[:1]),
    )
    rng = np.random.default_rng(3)
    batch = {
        "image": rng.integers(0, 256, (16, 40, 40, 3), dtype=np.uint8),
        "extent": np.full((16, 2), 40, np.int32),
        "label": rng.integers(0, 6, 16).astype(np.int32),
    }
    batch["label"][:9] = -1  # the first device has nothing to count
    state = jax.device_get(classifier.new(2, evaluation.channels, 6))
    steps = [
        e.train_step(e.backbone, state, np.uint32(0), sharding.put_batch(batch, e.mesh))
        for e in (alone, evaluation)
    ]
    for a, b in zip(*map(jax.tree.leaves, steps), strict=True):
        # one mean or two halves of it, in float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 20}, "linear.batch_size 20 does not divide over 8 devices; 16 would"),
        ({"test_split": "validation"}, "validation"),
    ],
)
def test_mistakes_are_named(evaluation, change, message):
    config = program.plain_config(evaluation.config)
    config["linear"] |= change
    with pytest.raises(UserError, match=message):
        linear.build(config, evaluation.backbone, sharding.make_mesh())


def test_images_without_labels_are_refused(evaluation, tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((32, 32, 3), np.uint8))
    config = program.plain_config(evaluation.config)
    config["data"]["dataset"] = f"folder:{tmp_path}"
    with pytest.raises(UserError, match="has no labels .*; linear evaluation needs"):
        linear.build(config, evaluation.backbone, evaluation.mesh)


def script(*arguments):
    return subprocess.run(
        [sys.executable, REPO / "scripts/linear_eval.py", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_evaluates_a_checkpoint_of_an_older_config(evaluation, tmp_path):
    folder = evaluation.config["data"]["dataset"].partition(":")[2]
    config = program.plain_config(tiny_evaluation("/nowhere", backbone="resnet18"))
    variables = tiny_backbone(tiny_evaluation("/nowhere", backbone="resnet18"))
    del config["linear"], config["model"]["neck"]  # keys that it did not have yet
    encoder = {name: {"encoder": {"backbone": variables[name]}} for name in variables}
    state = TrainState(np.zeros((), np.int32), **encoder, target_params={}, target_batch_stats={},
                       opt_state={}, memory={})  # fmt: skip
    checkpoint.write(tmp_path / "run", state, {"config": config})
    done = script(
        f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", "--lrs=0.03,0.3",
        f"--dataset=folder:{folder}", "--test_split=train", "--batch_size=16", "--epochs=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["epochs"] == 1 and [row["lr"] for row in result["rows"]] == [0.03, 0.3]
    assert done.stdout.strip() == loop.as_text(result).strip()
    assert "49 images, 1 cpu device(s)" in done.stderr


def test_a_forgotten_flag_is_one_line():
    done = script("--workdir=runs/demo")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: --output FOLDER is missing")
