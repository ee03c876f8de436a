"""The comparison with torch compares the same computation."""

import jax
import numpy as np
import pytest
from conftest import tiny_config
from torch_or_skip import module_on_torch

from mcl_jax import program, sharding
from mcl_jax.bench import turns
from mcl_jax.convert.names import architectures
from mcl_jax.convert.targets import authors
from mcl_jax.errors import UserError

versus = module_on_torch("mcl_jax.bench.versus")
torch_side = module_on_torch("mcl_jax.bench.torch_side")


@pytest.fixture
def one_device(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(versus.sharding, "mesh_for", lambda _: mesh)


def authors_names(config):
    architecture = architectures.from_config(program.plain_config(config))
    named = authors.layout(architecture, config.montage.levels).named
    return {name: entry.source for name, entry in named.items()}


def test_both_sides_start_from_the_same_weights_and_montages(one_device):
    config = tiny_config()
    config.data.batch_size, config.model.head_convs = 32, 1
    config.loss.pyramid = "full"  # torch's
    config.data.image_size = config.data.canvas_size = 32
    config.numerics.compute_dtype = "float32"
    result = versus.compare(config, authors_names(config), steps=1)
    assert result["first_loss"] == pytest.approx(result["torch_first_loss"], rel=1e-5)
    assert result["ratio"] == pytest.approx(result["torch_seconds"] / result["seconds"])


def test_what_the_authors_do_not_compute_is_refused(one_device):
    config = tiny_config()
    config.data.batch_size, config.model.neck = 32, "c4"
    with pytest.raises(UserError, match="model.neck has to be fpn, is c4"):
        versus.compare(config, {}, steps=1)


def montages(counts=(64, 16, 4, 2), side=8):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 64, (2, n * 4**s)) for s, n in enumerate(counts)]
    canvases = rng.standard_normal((2, sum(counts), 3, side, side)).astype(np.float32)
    weights = {"encoder_q.0.conv1.weight": np.ones((4, 3, 7, 7), np.float32)}
    options = {"batch_size": 64, "level_weights": (0.5, 0.25), "temperature": 1.0}
    return torch_side.Task(weights, canvases, tuple(labels), counts, options)


def test_what_torch_starts_from_survives_the_way_to_its_process(tmp_path):
    task = montages()
    task.save(tmp_path / "torch.npz")
    back = torch_side.Task.load(tmp_path / "torch.npz")
    assert back.counts == task.counts and back.options["batch_size"] == 64
    np.testing.assert_array_equal(back.canvases, task.canvases)
    for name, weight in task.weights.items():
        np.testing.assert_array_equal(back.weights[name], weight)
    for ours, theirs in zip(back.labels, task.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_half_of_a_batch_has_the_shapes_of_a_batch_of_half_the_size():
    task = montages()
    half = task.halved()
    assert half.counts == (32, 8, 2, 1) and half.options["batch_size"] == 32
    assert half.canvases.shape == (2, 43, 3, 8, 8)
    np.testing.assert_array_equal(half.canvases[:, 32:40], task.canvases[:, 64:72])
    assert [level.shape for level in half.labels] == [(2, 32), (2, 32), (2, 32), (2, 64)]
    assert all(level.max() < 32 for level in half.labels)
    with pytest.raises(ValueError, match="cannot be halved"):
        half.halved()


def test_the_ratio_of_two_sides_is_of_images_as_their_batches_may_differ():
    ours = {"images_per_s": 900.0, "seconds_per_step": 0.2, "batch_size": 180, "mfu": 0.12}
    ours |= {"memory_in_use_bytes": 5, "first_loss": 4.0, "device": "a card"}
    theirs = {"images_per_s": 300.0, "seconds": 0.3, "batch_size": 90, "first_loss": None}
    theirs |= {"peak_bytes": 7, "reserved_bytes": 8, "device": "a card", "torch": "2"}
    theirs["finite"] = True
    result = turns.join(ours, theirs)
    assert result["ratio"] == 3.0 and result["torch_mfu"] == pytest.approx(0.04)
    assert (result["batch_size"], result["torch_batch_size"]) == (180, 90)
    assert turns.join(ours | {"mfu": None}, theirs)["torch_mfu"] is None
    with pytest.raises(UserError, match="not finite"):
        turns.join(ours, theirs | {"finite": False})
