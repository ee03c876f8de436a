"""The built-in scenes: deterministic, labeled truthfully, prepared safely."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from mcl_jax.data.decode import decode_to_canvas
from mcl_jax.data.scenes import builder
from mcl_jax.data.scenes.render import CLASS_NAMES, DOMINANT_SHARE
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(builder.Scenes, "split_sizes", {"train": 24, "validation": 8})


@pytest.fixture(scope="module")
def drawn():
    return [builder.scene("train", i) for i in range(150)]


def test_a_scene_depends_on_split_and_index_alone():
    again = builder.scene("train", 5)
    np.testing.assert_array_equal(again.image, builder.scene("train", 5).image)
    for other in (builder.scene("train", 6), builder.scene("validation", 5)):
        assert other.image.shape != again.image.shape or (other.image != again.image).any()


def test_dominant_object_covers_a_clear_majority(drawn):
    for scene in drawn:
        assert scene.areas[scene.dominant] == scene.areas.max()
        assert scene.areas[scene.dominant] >= DOMINANT_SHARE * scene.areas.sum()


def test_boxes_lie_inside_and_hold_their_visible_area(drawn):
    for scene in drawn:
        height, width = scene.image.shape[:2]
        assert max(height, width) == 128
        top, left, bottom, right = scene.boxes.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (bottom <= height).all() and (right <= width).all()
        assert ((bottom - top) * (right - left) >= scene.areas).all()


def test_scenes_hold_many_objects_scales_and_every_class(drawn):
    sizes = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]).max(1) for s in drawn])
    assert sizes.min() < 16 and sizes.max() > 80
    assert np.mean([len(s.labels) for s in drawn]) > 2.5
    dominant = np.bincount([s.labels[s.dominant] for s in drawn], minlength=len(CLASS_NAMES))
    # 150 draws of 8 classes: 19 expected, below 6 has a probability under 1e-3 per class.
    assert dominant.min() >= 6


def test_color_says_nothing_about_the_class(drawn):
    """Class means of the dominant object's mean color differ by less than chance allows."""
    means = {label: [] for label in range(len(CLASS_NAMES))}
    for scene in drawn:
        top, left, bottom, right = scene.boxes[scene.dominant].astype(int)
        patch = scene.image[top:bottom, left:right].reshape(-1, 3)
        means[int(scene.labels[scene.dominant])].append(patch.mean(0))
    everything = np.concatenate([np.stack(v) for v in means.values()])
    for values in means.values():
        error = everything.std(0) / np.sqrt(len(values))
        # 24 comparisons of a fixed seed: 4 standard errors is chance once in 700 seeds.
        assert (np.abs(np.mean(values, 0) - everything.mean(0)) < 4 * error).all()


def test_prepares_itself_and_reads_back(small, tmp_path):
    source = open_source("scenes", "train", str(tmp_path))
    assert len(source) == 24 and source.class_names == CLASS_NAMES
    record = source[0]
    canvas, extent = decode_to_canvas(record.data, 128)
    assert max(extent) == 128 and canvas.any()
    truths = [builder.scene_example("train", i) for i in range(24)]
    truth = next(t for t in truths if t["image"] == record.data)
    assert record.label == truth["label"]
    info = json.loads((tmp_path / "scenes" / "1.0.0" / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"


def test_two_preparing_at_once_leave_one_sound_data_set(small, tmp_path):
    failures = []

    def prepare():
        try:
            builder.prepare_scenes(str(tmp_path))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [p.name for p in (tmp_path / "scenes").iterdir()] == ["1.0.0"]
    assert len(open_source("scenes", "validation", str(tmp_path))) == 8


def test_unwritable_data_dir_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data_dir .* is a file; give a folder"):
        builder.prepare_scenes(str(tmp_path / "file"))


def test_default_directory_comes_from_the_environment(small, tmp_path, monkeypatch):
    monkeypatch.setenv("MCL_JAX_DATA", str(tmp_path / "here"))
    assert len(open_source("scenes", "train[:50%]", None)) == 12
    assert (tmp_path / "here" / "scenes").is_dir()


def test_tensorflow_is_never_imported(tmp_path):
    """In a process where importing TensorFlow fails loudly, preparing and reading work."""
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('TensorFlow was imported')")
    code = (
        "import sys\n"
        "from mcl_jax.data.scenes import builder\n"
        "builder.Scenes.split_sizes = {'train': 4}\n"
        "from mcl_jax.data.sources import open_source\n"
        "from mcl_jax.data import pipeline\n"
        "from mcl_jax.data.prepare import coco, folder, imagenet\n"
        f"print(len(open_source('scenes', 'train', {str(tmp_path / 'data')!r})[3].data) > 0)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
