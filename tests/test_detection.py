"""The probe: what is frozen, what is trained, what is measured, and how it goes on."""

import dataclasses
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_average_precision import NAMES

from mcl_jax import sharding
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import probe, training
from mcl_jax.evaluate.detection.boxed_images import BoxedSet
from mcl_jax.evaluate.detection.boxed_sources import BoxedRecord
from mcl_jax.evaluate.detection.data import ProbeData
from mcl_jax.evaluate.detection.detector import PARTS, Detector, ProbeSettings
from mcl_jax.evaluate.detection.functions import compiled
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.settings.records import fill

SETTINGS = ProbeSettings(
    image_size=32, train_images=2, eval_images=3, steps=3, batch_size=2, eval_batch_size=2,
    scale_jitter=(1.0, 1.0), min_visible=0.25, cache_gb=1.0, checkpoint_steps=1,
    base_lr=0.02, warmup_steps=1, weight_decay=1e-4, head_channels=8, head_convs=1, head_groups=2,
    prior=0.01, levels=("P4", "P5"), level_bounds=(12.0,), center_radius=1.5, focal_alpha=0.25,
    focal_gamma=2.0, score_threshold=0.05, candidates=10, nms_iou=0.6, max_detections=5,
    area_bounds=(10.0, 20.0),
)  # fmt: skip
NUMERICS = Numerics(jnp.float32, 0.9, 1e-5, None)


class Squares:
    """Three images with one bright square each, as PNG."""

    class_names = ("a", "b")
    boxes = ((2, 3, 12, 13), (8, 8, 30, 28), (4, 10, 14, 20))
    labels = (0, 1, 0)
    sizes = ((32, 32), (32, 30), (28, 32))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        (top, left, bottom, right), size = self.boxes[index], self.sizes[index]
        image = np.full((*size, 3), 40, np.uint8)
        image[top:bottom, left:right] = 220
        box = np.array([self.boxes[index]]) / np.tile(size, 2)
        return BoxedRecord(
            cv2.imencode(".png", image)[1].tobytes(), box.astype(np.float32),
            labels=np.array([self.labels[index]], np.int32),
            ignored=np.zeros(1, bool), name=f"{index}.png",
        )  # fmt: skip


def squares(source=None, **changes):
    values = {"rows": range(3), "image_size": 32, "cache_bytes": 10**6, "max_unreadable": 0.0}
    return BoxedSet(source or Squares(), **(values | changes))


@pytest.fixture(scope="module")
def data():
    return squares()


def detector(config, trained, **changes):
    return Detector(
        dataclasses.replace(SETTINGS, **changes),
        fill(Architecture, config.model),
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


@pytest.fixture
def variables(pretrained):
    """As a checkpoint gives them, with a part that the probe has no use for."""
    kinds = ("params", "batch_stats")
    by_kind = {kind: {part: v[kind] for part, v in pretrained.items()} for kind in kinds}
    by_kind["params"]["head"] = {"of": {"another": np.zeros(3)}}
    return by_kind


@pytest.fixture
def run(config, data, variables):
    """probe(...) on the squares; keyword arguments change it."""
    config.probe = ConfigDict(dataclasses.asdict(SETTINGS))
    architecture = fill(Architecture, config.model)

    def call(**changes):
        values = {"mode": "backbone+fpn", "seed": 1, "data": ProbeData(data, data)} | changes
        mesh, conduct = (values.pop(name, None) for name in ("mesh", "conduct"))
        prepared = probe.prepare(config, architecture, NUMERICS, variables, **values)
        return probe.measure(prepared, mesh, conduct).scores

    return call


def same(a, b):
    return jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)


def start(tool, parts):
    functions = compiled(tool, training.one_device())
    return functions.initial(key_for(0, 0, 0, Purpose.PROBE), parts)


def test_frozen_training_changes_the_head_alone(config, data, pretrained):
    tool = detector(config, ("head",))
    before = jax.tree.map(np.copy, pretrained)
    fitted, steps = training.fit(tool, pretrained, data, 0)
    assert steps == 3 and all(jax.tree.leaves(same(before, {p: fitted[p] for p in before})))
    assert all(jax.tree.leaves(same(before, pretrained)))
    head = start(tool, ("head",))["head"]
    assert not any(jax.tree.leaves(same(head["params"], fitted["head"]["params"])))


def test_a_missing_fpn_is_trained_with_its_statistics(config, data, pretrained):
    tool = detector(config, ("fpn", "head"))
    backbone = {"backbone": pretrained["backbone"]}
    fitted, _ = training.fit(tool, backbone, data, 0)
    assert all(jax.tree.leaves(same(backbone["backbone"], fitted["backbone"])))
    kernel = fitted["fpn"]["params"]["lateral5"]["kernel"]
    new = start(tool, ("fpn", "head"))["fpn"]["params"]["lateral5"]["kernel"]
    assert (np.asarray(kernel) != new).any()
    assert fitted["fpn"]["batch_stats"]["lateral5"]["norm"]["mean"].any()


def test_what_frozen_parts_put_out_may_be_kept_or_computed_each_time(config, data, pretrained):
    """Also: data that is not kept in memory, and several reading threads."""
    backbone = {"backbone": pretrained["backbone"]}
    kept, computed = (
        training.fit(
            detector(config, ("fpn", "head"), cache_gb=size), backbone,
            squares(cache_bytes=int(size * 1e9)), 0, conduct=training.Conduct(threads=threads),
        )[0]
        for size, threads in ((1.0, 1), (0.0, 3))
    )  # fmt: skip
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(computed), strict=True):
        # Adam divides by the size of a gradient, so rounding of tiny ones shows: three steps
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_fine_tuning_trains_everything_and_fits_two_images(config, data, pretrained):
    tool = detector(config, PARTS)
    functions = compiled(tool, training.one_device())
    trained = functions.replicate(pretrained | start(tool, ("head",)))
    memory = functions.optimizer.init({part: v["params"] for part, v in trained.items()})
    batch, mirrored = data.read([0, 1]), np.zeros(2, bool)
    inputs = {"images": batch.images, "extents": batch.extents}
    inputs |= {"mirrored": mirrored, "placement": None}
    targets = functions.targets(batch.truth, batch.extents, mirrored, None)
    losses = []
    for _ in range(40):
        trained, memory, loss = functions.step(
            trained, memory, {}, inputs, targets, np.float32(0.01)
        )
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    before, after = pretrained, trained
    for key in ("backbone", "params", "stem", "kernel"):
        before, after = before[key], after[key]
    assert (before != np.asarray(after)).any()


def test_probe_measures_every_image_and_is_reproducible(run):
    first, second = run(), run()
    np.testing.assert_equal(first, second)
    assert set(first) == NAMES


def test_two_devices_step_and_detect_as_one(config, data, pretrained):
    """An image each: batch statistics, loss and gradients (Adam's moments) are those of both."""
    tool, found = detector(config, ("fpn", "head")), []
    parts = {"backbone": pretrained["backbone"]} | start(tool, ("fpn", "head"))
    for count in (1, 2):
        functions = compiled(tool, sharding.make_mesh(jax.devices()[:count]))
        variables = functions.replicate(parts)
        frozen, trained = ({p: variables[p] for p in own} for own in (PARTS[:1], PARTS[1:]))
        memory = functions.optimizer.init({p: v["params"] for p, v in trained.items()})
        feed = training.Feed(
            tool, functions, frozen=frozen, data=data, seed=0, conduct=training.Conduct()
        )
        inputs, targets = feed.placed(0, *feed.read(np.array([0, 4])))
        batch = data.read([0, 1])
        images = functions.split((batch.images, batch.extents))
        scores = functions.predict(trained, frozen, *images).scores
        trained, memory, loss = functions.step(
            trained, functions.replicate(memory), frozen, inputs, targets, np.float32(0.0)
        )
        statistics = {p: v["batch_stats"] for p, v in trained.items()}
        found.append(jax.tree.leaves(jax.device_get((loss, memory, statistics, scores))))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_stopped_probe_ends_as_the_uninterrupted_one(run, tmp_path, killed_after):
    whole = run(mode="backbone")
    conduct = training.Conduct(folder=tmp_path, stops=lambda step: step == killed_after)
    with pytest.raises(training.Stopped):
        run(mode="backbone", conduct=conduct)
    assert (tmp_path / training.STATE_FILE).exists()
    with pytest.raises(UserError, match="holds a probe with seed 1, not 2; give a new --output"):
        run(mode="backbone", seed=2, conduct=conduct)
    steps = []
    go_on = training.Conduct(folder=tmp_path, stops=lambda step: steps.append(step))
    np.testing.assert_equal(run(mode="backbone", conduct=go_on), whole)
    assert steps == list(range(killed_after + 1, 4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "frozen"}, "mode 'frozen' is not one of backbone, backbone.fpn, tuned"),
        ({"labels": 4}, "a budget of 4 labeled images: the set has 3"),
        ({"mesh": 3}, "probe.batch_size 2 does not divide over 3 devices"),
    ],
)
def test_what_a_probe_cannot_be_is_told(run, changes, message):
    if "mesh" in changes:
        changes = {"mesh": sharding.make_mesh(jax.devices()[: changes["mesh"]])}
    with pytest.raises(UserError, match=message):
        run(**changes)


def test_freezing_an_fpn_that_is_not_there_is_told(run, variables):
    del variables["params"]["fpn"]
    with pytest.raises(UserError, match="freezes fpn, which this method does not pre-train"):
        run()


def test_padding_is_the_mean_color(config):
    tool = detector(config, ())
    x = tool.standardize(jnp.full((1, 4, 4, 3), 255, jnp.uint8), jnp.array([[2, 3]]))
    assert not x[0, 2:].any() and not x[0, :, 3:].any()
    np.testing.assert_allclose(x[0, 1, 2], (1 - np.array(tool.mean)) / tool.std, rtol=1e-6)


def test_batches_are_whole_passes_and_chunks_visit_all():
    batches = training._batches(np.random.default_rng(0), 6, batch_size=3, steps=4)
    assert batches.shape == (4, 3)
    assert sorted(batches[:2].ravel() % 6) == list(range(6))
    assert batches.max() >= 6  # mirror images occur
    np.testing.assert_array_equal(training._chunks(5, 2), [[0, 1], [2, 3], [4, 4]])


def test_learning_rate_warms_up_and_ends_near_zero():
    s = dataclasses.replace(SETTINGS, steps=100, warmup_steps=9, base_lr=1.0)
    rates = [training.learning_rate(s, i) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert 0 < rates[-1] < 1e-3


def test_missing_pycocotools_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        run()
