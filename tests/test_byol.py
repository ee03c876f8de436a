"""BYOL's loss against numpy, and the whole objective against its own networks' outputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_methods import SIDE, arguments, new_state, pictures, unit, use_small_backbone

from mcl_jax.models.layers import Context
from mcl_jax.objectives.byol import BYOL, Inputs, symmetric_loss

IMAGES = 4


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def numpy_loss(online, target):
    """Squared distances of unit vectors, one image and one direction at a time."""
    total = 0.0
    for side in (0, 1):
        for u, v in zip(online[side], target[1 - side], strict=True):
            total += np.sum((unit(u) - unit(v)) ** 2) / online.shape[1]
    return total


def test_loss_is_the_squared_distance_of_both_directions_and_trains_the_online_side():
    online, target = np.random.default_rng(0).normal(size=(2, 2, IMAGES, 5))
    u, v = (unit(x).astype(np.float32) for x in (online, target))
    grad = jax.jit(jax.value_and_grad(symmetric_loss, argnums=(0, 1), has_aux=True))
    (loss, metrics), (to_online, to_target) = grad(u, v)
    assert float(loss) == pytest.approx(numpy_loss(online, target), rel=1e-6)
    cosines = np.stack([unit(online[0]) @ unit(target[1]).T, unit(online[1]) @ unit(target[0]).T])
    same = np.eye(IMAGES, dtype=bool)
    assert float(metrics["positive"]) == pytest.approx(cosines[:, same].mean(), abs=1e-6)
    assert float(metrics["negative"]) == pytest.approx(cosines[:, ~same].mean(), abs=1e-6)
    assert float(metrics["top1"]) == (cosines.argmax(2) == np.arange(IMAGES)).mean()
    # d/du of mean(2 - 2 u.v): the metrics add nothing
    np.testing.assert_allclose(to_online, -2 * v[::-1] / IMAGES, atol=1e-7)
    assert not np.any(to_target)


def test_collapsed_features_have_no_spread():
    same = jnp.full((2, IMAGES, 4), 0.5)
    assert float(jax.jit(symmetric_loss)(same, same)[1]["std"]) == 0


def side_by_side(objective, state, images):
    """Each side is normalized alone, and updates the running statistics in turn.

    Returns predictions and target embeddings [2, b, D], and the statistics of online and target.
    """

    def embed(module, params, stats, sides):
        out = []
        for x in sides:
            variables = {"params": params, "batch_stats": stats}
            y, new = module.apply(
                variables, x, Context((IMAGES,), train=True), mutable=["batch_stats"]
            )
            stats = new["batch_stats"]
            out.append(y)
        return jnp.stack(out), stats

    sides = images.reshape(2, IMAGES, SIDE, SIDE, 3)
    params, stats = state.params, state.batch_stats
    z, encoder_stats = embed(objective.encoder, params["encoder"], stats["encoder"], sides)
    p, predictor_stats = embed(objective.predictor, params["predictor"], stats["predictor"], z)
    t, target_stats = embed(objective.encoder, state.target_params, state.target_batch_stats, sides)
    return p, t, ({"encoder": encoder_stats, "predictor": predictor_stats}, target_stats)


def test_whole_objective_against_its_networks():
    objective = BYOL(**arguments(IMAGES))
    state = new_state(objective)
    images = pictures(2 * IMAGES, SIDE, SIDE, 3)

    def loss(params, target):
        return objective.loss(params, state.replace(target_params=target), Inputs(images), None)

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, outcome), (grads, to_target) = grad(state.params, state.target_params)

    p, t, expected = jax.jit(partial(side_by_side, objective))(state, images)
    assert float(value) == pytest.approx(numpy_loss(p, t), rel=1e-5)  # float32, ten layers
    computed = (outcome.batch_stats, outcome.target_batch_stats)
    for a, b in zip(jax.tree.leaves(computed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert outcome.memory == {}
    assert {"std/level0", "positive/level0", "negative/level0"} <= outcome.metrics.keys()
    assert not any(np.any(x) for x in jax.tree.leaves(to_target))
    kernels = [x for x in jax.tree.leaves(grads) if x.ndim > 1]
    assert all(np.any(x) for x in kernels)


def test_inputs_are_two_different_views():
    objective = BYOL(**arguments(2))
    batch = {"image": np.zeros((2, 40, 40, 3), np.uint8), "extent": np.full((2, 2), 40)}
    shapes = jax.eval_shape(objective.inputs, jnp.uint32(0), jnp.int32(0), batch, jnp.int32(0))
    assert shapes.images.shape == (4, SIDE, SIDE, 3)
    rows = objective.pictures(Inputs(jnp.arange(4.0).reshape(4, 1, 1, 1)))
    assert [x.ravel().tolist() for x in rows.values()] == [[0, 1], [2, 3]]
