"""The probe: what is frozen, what is trained, what is measured."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mcl_jax.data.scenes import builder
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import probe
from mcl_jax.evaluate.detection.average_precision import average_precision
from mcl_jax.evaluate.detection.boxed_images import BoxedImages, load_scenes, with_mirrored
from mcl_jax.evaluate.detection.detector import PARTS, Detector, ProbeSettings
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.objectives.build import settings

SETTINGS = ProbeSettings(
    image_size=32, train_images=2, eval_images=3, steps=3, batch_size=2, eval_batch_size=2,
    base_lr=0.02, warmup_steps=1, weight_decay=1e-4, head_channels=8, head_convs=1, head_groups=2,
    prior=0.01, levels=("P4", "P5"), level_bounds=(12.0,), center_radius=1.5, focal_alpha=0.25,
    focal_gamma=2.0, score_threshold=0.05, candidates=10, nms_iou=0.6, max_detections=5,
    area_bounds=(10.0, 20.0),
)  # fmt: skip
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NUMERICS = Numerics(jnp.float32, 0.9, 1e-5, None)


@pytest.fixture(scope="module")
def data():
    """Three images with one bright square each."""
    boxes = np.array([[[2, 3, 12, 13]], [[8, 8, 30, 28]], [[4, 10, 14, 20]]], np.float32)
    images = np.full((3, 32, 32, 3), 40, np.uint8)
    for image, (box,) in zip(images, boxes.astype(int), strict=True):
        image[box[0] : box[2], box[1] : box[3]] = 220
    extents = np.array([[32, 32], [32, 30], [28, 32]], np.int32)
    return BoxedImages(images, extents, boxes, np.array([[0], [1], [0]], np.int32), ("a", "b"))


def detector(config, trained, **changes):
    return Detector(
        dataclasses.replace(SETTINGS, **changes),
        settings(Architecture, config.model),
        NUMERICS,
        tuple(config.augment.mean),
        tuple(config.augment.std),
        2,
        trained,
    )


@pytest.fixture(scope="module")
def pretrained():
    from conftest import tiny_config

    make = jax.jit(detector(tiny_config(), ()).initial, static_argnames="parts")
    return jax.tree.map(np.asarray, make(jax.random.key(3), ("backbone", "fpn")))


def same(a, b):
    return jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)


def test_frozen_training_changes_the_head_alone(config, data, pretrained):
    tool = detector(config, ("head",))
    before = jax.tree.map(np.copy, pretrained)
    fitted = probe.fit(tool, pretrained, data, 0)
    assert all(jax.tree.leaves(same(before, {p: fitted[p] for p in before})))
    assert all(jax.tree.leaves(same(before, pretrained)))
    start = probe.compiled(tool).initial(probe.key_for(0, 0, 0, probe.Purpose.PROBE), ("head",))
    assert not any(jax.tree.leaves(same(start["head"]["params"], fitted["head"]["params"])))


def test_a_missing_fpn_is_trained_with_its_statistics(config, data, pretrained):
    tool = detector(config, ("fpn", "head"))
    backbone = {"backbone": pretrained["backbone"]}
    fitted = probe.fit(tool, backbone, data, 0)
    assert all(jax.tree.leaves(same(backbone["backbone"], fitted["backbone"])))
    kernel = fitted["fpn"]["params"]["lateral5"]["kernel"]
    start = probe.compiled(tool).initial(
        probe.key_for(0, 0, 0, probe.Purpose.PROBE), ("fpn", "head")
    )["fpn"]
    assert (np.asarray(kernel) != start["params"]["lateral5"]["kernel"]).any()
    assert fitted["fpn"]["batch_stats"]["lateral5"]["norm"]["mean"].any()


def test_fine_tuning_trains_everything_and_fits_two_images(config, data, pretrained):
    tool = detector(config, PARTS)
    functions = probe.compiled(tool)
    new = probe.compiled(detector(config, ("head",))).initial(jax.random.key(0), ("head",))
    trained = jax.tree.map(jnp.array, pretrained | new)
    memory = functions.optimizer.init({part: v["params"] for part, v in trained.items()})
    inputs = (jnp.asarray(data.images), jnp.asarray(data.extents))
    targets = functions.targets(data.boxes, data.labels)
    losses = []
    for _ in range(40):
        trained, memory, loss = functions.step(
            trained, memory, inputs, targets, np.array([0, 1], np.int32), np.float32(0.01)
        )
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    stem = "backbone", "params", "stem", "kernel"
    before, after = pretrained, trained
    for key in stem:
        before, after = before[key], after[key]
    assert (before != np.asarray(after)).any()


def test_probe_measures_every_image_and_is_reproducible(config, data, pretrained):
    config.probe = ConfigDict(dataclasses.asdict(SETTINGS))
    variables = {
        kind: {part: v[kind] for part, v in pretrained.items()}
        for kind in ("params", "batch_stats")
    }
    architecture = settings(Architecture, config.model)
    first, second = (
        probe.probe(
            config, architecture, NUMERICS, variables, frozen=True, seed=seed, data=(data, data)
        )
        for seed in (1, 1)
    )
    np.testing.assert_equal(first, second)
    assert set(first) == set(NAMES)


def test_padding_is_the_mean_color(config):
    tool = detector(config, ())
    x = tool.normalize(jnp.full((1, 4, 4, 3), 255, jnp.uint8), jnp.array([[2, 3]]))
    assert not x[0, 2:].any() and not x[0, :, 3:].any()
    np.testing.assert_allclose(x[0, 1, 2], (1 - np.array(tool.mean)) / tool.std, rtol=1e-6)


def test_mirror_images_mirror_within_the_extent(data):
    twice = with_mirrored(data)
    assert twice.images.shape[0] == 6
    np.testing.assert_array_equal(twice.boxes[4], [[8, 2, 30, 22]])  # 30 px wide, not 32
    for image, (box,) in zip(twice.images, twice.boxes.astype(int), strict=True):
        assert (image[box[0] : box[2], box[1] : box[3]] == 220).all()
        assert (image == 220).sum() == 3 * (box[2] - box[0]) * (box[3] - box[1])


def test_batches_are_whole_passes_and_chunks_visit_all():
    batches = probe._batches(np.random.default_rng(0), 6, 3, 4)
    assert batches.shape == (4, 3)
    assert sorted(batches[:2].ravel() % 6) == list(range(6))
    assert batches.max() >= 6  # mirror images occur
    np.testing.assert_array_equal(probe._chunks(5, 2), [[0, 1], [2, 3], [4, 4]])


def test_learning_rate_warms_up_and_ends_near_zero():
    s = dataclasses.replace(SETTINGS, steps=100, warmup_steps=9, base_lr=1.0)
    rates = [probe.learning_rate(s, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert 0 < rates[-1] < 1e-3


def perfect(data):
    scores = np.where(data.labels >= 0, 0.9, 0.0)
    return Detections(data.boxes, np.maximum(data.labels, 0), scores)


def sized(sides, labels):
    """One image for each square."""
    boxes = np.array([[[1, 1, 1 + side, 1 + side]] for side in sides], np.float32)
    n = len(sides)
    return BoxedImages(
        np.zeros((n, 2, 2, 3), np.uint8), np.zeros((n, 2), np.int32), boxes,
        np.array(labels, np.int32)[:, None], ("a", "b"),
    )  # fmt: skip


def measure(data, found):
    return average_precision(data.boxes, data.labels, found, 2, (10.0, 20.0))


def test_perfect_detections_score_one_and_none_score_zero(capsys):
    data = sized([5, 15, 25, 26], [0, 1, 0, 1])
    # pycocotools adds an epsilon to the denominator of a precision
    assert measure(data, perfect(data)) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    found = perfect(data)
    nothing = found._replace(scores=np.zeros_like(found.scores))
    assert set(measure(data, nothing).values()) == {0.0}
    assert capsys.readouterr().out == ""


def test_sizes_are_told_apart():
    data = sized([5, 15, 25], [0, 0, 0])
    found = perfect(data)
    scores = found.scores.copy()
    scores[1] = 0.0
    result = measure(data, found._replace(scores=scores))
    by_size = [result[f"ap_{s}"] for s in ("small", "medium", "large")]
    assert by_size == pytest.approx([1.0, 0.0, 1.0])
    # recall 2/3 at precision 1: of the 101 recalls 0, .01, ..., those up to .66
    assert result["ap"] == pytest.approx(67 / 101)


def test_loose_boxes_and_wrong_labels_cost():
    data = sized([20, 20], [0, 1])
    found = perfect(data)
    loose = found.boxes + np.array([0, 0, 0, 8], np.float32)  # IoU 20 / 28 = 0.71
    result = measure(data, found._replace(boxes=loose))
    assert result["ap50"] == pytest.approx(1.0) and result["ap75"] == 0.0
    assert result["ap"] == pytest.approx(5 / 10)  # .50 to .70
    assert np.isnan(result["ap_small"])
    assert measure(data, found._replace(labels=1 - found.labels))["ap"] == 0.0


def test_scenes_come_with_boxes_in_px(tmp_path, monkeypatch):
    monkeypatch.setattr(builder.Scenes, "split_sizes", {"train": 6, "validation": 4})
    data = load_scenes(str(tmp_path), "validation", 4, 64)
    assert data.images.shape == (4, 64, 64, 3) and len(data.class_names) == 8
    assert (data.extents.max(1) == 64).all()
    there = data.labels >= 0
    assert there.any(1).all() and (~there).any() and not data.boxes[~there].any()
    limits = np.tile(data.extents, 2)[:, None] + 1e-3
    assert (data.boxes <= limits).all() and (data.boxes >= 0).all()
    assert (data.boxes[there][:, 2:] - data.boxes[there][:, :2] > 3).all()
    assert load_scenes(str(tmp_path), "validation", 4, 64) is data
    with pytest.raises(UserError, match="5 scenes are asked for, split 'validation' has 4"):
        load_scenes(str(tmp_path), "validation", 5, 64)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"image_size": 100}, "multiple of 32, got 100"),
        ({"levels": ("P3", "P5")}, "end of"),
        ({"level_bounds": ()}, "must be 1 numbers"),
        ({"head_groups": 3}, "not a multiple of head_groups 3"),
        ({"steps": 0}, "probe.steps must be at least 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_user_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **wrong)


def test_missing_pycocotools_is_one_line(config, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        probe.probe(config, None, NUMERICS, {}, frozen=True, seed=0, data=(data, data))
