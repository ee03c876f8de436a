"""Masks by path, LARS by hand, schedules at their corners."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcl_jax import optimizer, program
from mcl_jax.settings.records import fill


def settings(config, **changes):
    return fill(optimizer.OptimizerSettings, dict(config.optimizer) | changes)


def parameter_shapes(config):
    objective = program.make_objective(config, 8, None)
    return jax.eval_shape(objective.init, jax.random.key(0)).params


def paths(mask):
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {tuple(key.key for key in path) for path, value in leaves if value}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_excluded_are_exactly_biases_and_norm_scales(config, backbone):
    config.model.backbone = backbone
    shapes = parameter_shapes(config)
    excluded = paths(optimizer.excluded_mask(shapes, "norm_and_bias"))
    everything = jax.tree_util.tree_leaves_with_path(shapes)
    kernels = {tuple(k.key for k in path) for path, x in everything if x.ndim > 1}
    vectors = {tuple(k.key for k in path) for path, x in everything if x.ndim == 1}
    assert excluded == vectors
    assert {path[-1] for path in excluded} == {"bias", "scale"}
    assert {path[-1] for path in kernels} == {"kernel"}
    # every scale sits in a norm; every bias in a norm or a linear layer
    for path in excluded:
        assert "norm" in path[-2] or (path[-1] == "bias" and path[-2].startswith("linear"))
    assert len(excluded) + len(kernels) == len(everything)


def test_the_published_network_has_225_trainable_tensors():
    from mcl_jax.configs.base import get_config

    assert len(jax.tree.leaves(parameter_shapes(get_config()))) == 225


def test_the_authors_rule_misses_shortcut_and_mlp_scales(config):
    config.model.backbone = "resnet18"
    shapes = parameter_shapes(config)
    ours = paths(optimizer.excluded_mask(shapes, "norm_and_bias"))
    theirs = paths(optimizer.excluded_mask(shapes, "authors"))
    missed = ours - theirs
    assert theirs < ours and all(path[-1] == "scale" for path in missed)
    assert {("shortcut" in path) or path[-2] == "norm1" for path in missed} == {True}
    assert len(missed) == 3 + 1 + 4  # R18's shortcuts, the projector, four predictors


def one_update(config, params, grads, lr=0.3, **changes):
    options = settings(config, **changes)
    transform = optimizer.create(options, params, lambda step: lr)
    state = transform.init(params)
    first, state = transform.update(grads, state, params)
    params = optax.apply_updates(params, first)
    second, _ = transform.update(grads, state, params)
    return np.asarray(params["kernel"]), np.asarray(optax.apply_updates(params, second)["kernel"])


@pytest.mark.parametrize("denominator", ["sum", "optax"])
def test_lars_by_hand_with_the_learning_rate_inside_the_momentum(config, denominator):
    w, g = np.array([[3.0, 4.0]]), np.array([[0.6, -0.8]])
    params, grads = ({"kernel": jnp.asarray(x), "bias": jnp.ones(2)} for x in (w, g))
    changes = {"weight_decay": 0.1, "trust_denominator": denominator, "trust_coefficient": 0.02}
    after_one, after_two = one_update(config, params, grads, **changes)

    def direction(w):
        decayed = g + 0.1 * w
        size = np.linalg.norm
        below = size(g) + 0.1 * size(w) if denominator == "sum" else size(decayed)
        return 0.3 * 0.02 * size(w) / below * decayed

    buffer = direction(w)
    np.testing.assert_allclose(after_one, w - buffer, rtol=1e-6)
    buffer = 0.9 * buffer + direction(w - buffer)
    np.testing.assert_allclose(after_two, after_one - buffer, rtol=1e-6)


def test_excluded_leaves_take_plain_momentum_steps(config):
    params = {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.full(2, 5.0)}}
    grads = {"kernel": jnp.zeros((2, 2)), "norm": {"scale": jnp.full(2, 0.5)}}
    transform = optimizer.create(settings(config), params, lambda step: 0.1)
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.05, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm(config):
    params = {"bias": jnp.zeros(2)}
    grads = {"bias": jnp.array([300.0, 400.0])}
    for clip, expected in ((500.0, 30.0), (50.0, 3.0)):
        options = settings(config, name="sgd", clip_norm=clip)
        transform = optimizer.create(options, params, lambda step: 0.1)
        updates, _ = transform.update(grads, transform.init(params), params)
        assert float(updates["bias"][0]) == pytest.approx(-expected, rel=1e-5)


def test_learning_rate_warms_up_linearly_then_follows_the_cosine(config):
    lr = optimizer.learning_rate(settings(config, epochs=100), 4096, 312)
    peak, warmup, total = 16.0, 3120, 31200
    assert float(lr(0)) == pytest.approx(peak * 1e-4, rel=1e-4)
    assert float(lr(warmup // 2)) == pytest.approx(peak * (0.5 + 0.5e-4), rel=1e-4)
    assert float(lr(warmup)) == pytest.approx(peak, rel=1e-6)
    assert float(lr((warmup + total) // 2)) == pytest.approx((peak + 1e-4) / 2, rel=1e-4)
    assert float(lr(total)) == pytest.approx(1e-4, rel=1e-2)


def test_the_authors_warm_up_multiplies_a_cosine_that_already_runs(config):
    options = settings(config, epochs=100, warmup_shape="multiplied")
    lr = optimizer.learning_rate(options, 4096, 312)
    k, total, warmup = 1000, 31200, 3120
    cosine = 1e-4 + (16 - 1e-4) * (1 + np.cos(np.pi * k / total)) / 2
    expected = cosine * (1 - (1 - k / warmup) * (1 - 1e-4))
    assert float(lr(k)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_below_256_divides_instead_of_flooring_to_zero(config):
    lr = optimizer.learning_rate(settings(config, warmup_epochs=0), 64, 10)
    assert float(lr(0)) == pytest.approx(0.25, rel=1e-6)


def test_ema_momentum_goes_from_base_to_one_by_cosine():
    m = optimizer.ema_momentum(0.99, 1.0, 1000)
    assert float(m(0)) == pytest.approx(0.99)
    assert float(m(250)) == pytest.approx(1 - 0.01 * (np.cos(np.pi / 4) + 1) / 2, rel=1e-6)
    assert float(m(1000)) == 1.0


@pytest.mark.parametrize("rule", ["norm_and_bias", "authors"])
def test_lars_leaves_weights_that_no_loss_reads_as_they_are(config, rule):
    """FPN levels beyond S: with the ratio alone they would shrink by lr * eta a step."""
    params = {"read": {"kernel": jnp.ones((2, 2))}, "idle": {"kernel": jnp.full((2, 2), 0.1)}}
    lars = optimizer.create(settings(config, excluded=rule), params, lambda step: 16.0)
    grads = {"read": {"kernel": jnp.ones((2, 2))}, "idle": {"kernel": jnp.zeros((2, 2))}}
    state, start = lars.init(params), params
    for _ in range(5):
        updates, state = lars.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_array_equal(params["idle"]["kernel"], start["idle"]["kernel"])
    assert float(jnp.abs(params["read"]["kernel"] - 1).min()) > 0.01
