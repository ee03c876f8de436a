"""The comparison with torch compares the same computation."""

import jax
import pytest
from conftest import tiny_config
from torch_or_skip import module_on_torch

from mcl_jax import sharding
from mcl_jax.errors import UserError

versus = module_on_torch("mcl_jax.bench.versus")


@pytest.fixture
def one_device(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(versus.sharding, "mesh_for", lambda _: mesh)


def test_both_sides_start_from_the_same_weights_and_montages(one_device):
    config = tiny_config()
    config.data.batch_size, config.model.head_convs = 32, 1
    config.loss.pyramid = "full"  # torch's
    config.data.image_size = config.data.canvas_size = 32
    config.numerics.compute_dtype = "float32"
    result = versus.compare(config, steps=1)
    assert result["first_loss"] == pytest.approx(result["torch_first_loss"], rel=1e-5)
    assert result["ratio"] == pytest.approx(result["torch_seconds"] / result["seconds"])


def test_what_the_authors_do_not_compute_is_refused(one_device):
    config = tiny_config()
    config.data.batch_size, config.model.neck = 32, "c4"
    with pytest.raises(UserError, match="model.neck has to be fpn, is c4"):
        versus.compare(config, steps=1)
