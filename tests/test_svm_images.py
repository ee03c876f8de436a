"""Linear SVMs on the features of real images: all devices, the script, what the network sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import QUICK_COMPILE
from test_linear import tiny_backbone, tiny_evaluation, write_images

from mcl_jax import program, sharding
from mcl_jax.data import image_labels
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import svm, svm_measure
from mcl_jax.evaluate.linear.svm_fit import Machines
from mcl_jax.runtime import checkpoint
from mcl_jax.state import TrainState

REPO = Path(__file__).resolve().parent.parent
MACHINES = Machines((0.01, 1.0, 100.0), 3, positive_weight=2.0, max_iterations=2000, tolerance=1e-4)


def annotations(folder, name, sources):
    """COCO's file of images with one box a class of (file name, class numbers)."""
    content = {
        "images": [
            {"id": i, "file_name": file, "height": 32, "width": 40}
            for i, (file, _) in enumerate(sources)
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "category_id": k, "bbox": [1, 1, 9, 9]}
            for i, (_, classes) in enumerate(sources)
            for k in classes
        ],
        "categories": [{"id": k, "name": f"class{k}"} for k in range(6)],
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """(folder of six colors, files of COCO's form for training and test)."""
    folder = tmp_path_factory.mktemp("svm")
    write_images(folder / "images")
    parts = {
        name: [(f"class{k}/{i}.png", [k]) for k in range(6) for i in numbers]
        for name, numbers in (("train", range(5)), ("test", range(5, 8)))
    }
    parts["train"].append(("class3/broken.png", [3]))
    return folder / "images", *(annotations(folder, f"{n}.json", p) for n, p in parts.items())


def test_a_whole_evaluation_on_all_devices_is_that_of_one(photos):
    folder, *files = photos
    config = tiny_evaluation(folder)
    config.data.threads = 0
    config.svm.update({"batch_size": 8, "stages": ("res3", "res5"), "shots": (1,), "threads": 1})
    train, test = (image_labels.open_coco(file, folder) for file in files)
    backbone = tiny_backbone(config)
    results = [
        svm.run(
            program.plain_config(config),
            backbone,
            train=train,
            test=test,
            mesh=sharding.make_mesh(devices),
        )
        for devices in (jax.devices(), jax.devices()[:1])
    ]
    assert (results[0]["train_images"], results[0]["test_images"]) == (30, 18)  # one is broken
    for stage in ("res3", "res5"):
        rows = [result["stages"][stage] for result in results]
        assert rows[0]["map"] > 0.5  # plain colors, chance is 1/6
        assert rows[0]["map"] == pytest.approx(rows[1]["map"], abs=1e-6)
    with pytest.raises(UserError, match="the splits have other classes"):
        svm.run(program.plain_config(config), backbone, train=train,
                test=test._replace(class_names=("a",)), mesh=sharding.make_mesh())  # fmt: skip


def script(*arguments):
    return subprocess.run(
        [sys.executable, REPO / "scripts/linear_svm.py", *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_measures_a_checkpoint_of_an_older_config(photos, tmp_path):
    folder, train, test = photos
    settings = tiny_evaluation("/nowhere", backbone="resnet18")
    config, variables = program.plain_config(settings), tiny_backbone(settings)
    del config["svm"]  # a section that it did not have yet
    encoder = {name: {"encoder": {"backbone": variables[name]}} for name in variables}
    state = TrainState(np.zeros((), np.int32), **encoder, target_params={}, target_batch_stats={},
                       opt_state={}, memory={})  # fmt: skip
    checkpoint.write(tmp_path / "run", state, {"config": config})
    done = script(
        f"--workdir={tmp_path / 'run'}", f"--json={tmp_path / 'svm.json'}", "--shots=2",
        f"--train_json={train}", f"--train_images={folder}", f"--test_json={test}",
        f"--test_images={folder}", "--threads=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "svm.json").read_text())
    assert result["data"]["dataset"]["test_json"] == str(test) and result["svm"]["shots"] == [2]
    expected = svm_measure.as_text(result, result["svm"]["costs"])
    assert done.stdout == f"{train} -> {test}, step 0\n{expected}\n"
    missing = script(f"--workdir={tmp_path / 'run'}", f"--train_json={train}")
    assert missing.returncode == 2 and "--train_images is missing" in missing.stderr


def test_images_that_are_read_keep_their_colors(tmp_path):
    """The view shows the whole image: its left and right halves are there after the resize."""
    from mcl_jax.evaluate.embedding import whole_view

    canvas = np.zeros((48, 48, 3), np.uint8)
    canvas[:24, :20], canvas[:24, 20:40] = 51, 204
    view = whole_view(canvas, np.array([24, 40], np.int32), 32, mean=(0, 0, 0), std=(1, 1, 1))
    np.testing.assert_allclose(view[:, :15], 0.2, atol=1e-6)
    np.testing.assert_allclose(view[:, 17:], 0.8, atol=1e-6)
    cv2.imwrite(str(tmp_path / "0.png"), canvas)
    with pytest.raises(UserError, match="has no labels .*give a folder whose sub-folders"):
        image_labels.open_labeled(f"folder:{tmp_path}", "train", None)
