"""InfoNCE and its sum over levels, against hand and numpy computations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcl_jax import losses
from mcl_jax.errors import UserError


def test_two_queries_three_targets_by_hand():
    online = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    target = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss, metrics = losses.scaled_info_nce(
        online, target, labels=jnp.array([0, 1]), temperature=0.5
    )
    # cosines [[1, 0, -1], [.6, .8, -.6]], logits doubled, loss 2 * .5 * mean cross-entropy
    first = np.log(np.exp(2) + 1 + np.exp(-2)) - 2
    second = np.log(np.exp(1.2) + np.exp(1.6) + np.exp(-1.2)) - 1.6
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(metrics["positive"]) == pytest.approx(0.9)
    assert float(metrics["negative"]) == pytest.approx((0 - 1 + 0.6 - 0.6) / 4)
    assert float(metrics["top1"]) == 1.0


def random_case(levels=4, sides=2, images=6, dimensions=5, seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    sizes = [images * (2 if s == 3 else 1) for s in range(levels)]
    online = [unit(rng.normal(size=(sides, m, dimensions))) for m in sizes]
    targets = [unit(rng.normal(size=(sides, images, dimensions))) for _ in range(levels)]
    labels = [rng.integers(0, images, (sides, m)) for m in sizes]
    return online, targets, labels


def numpy_loss(online, targets, labels, mode, weights, tau):
    """Plain loops over sides, levels, target levels and rows."""
    levels, total = len(online), 0.0
    for side in (0, 1):
        for s in range(levels):
            allowed = {
                "a": [0],
                "b": [s],
                "c": [j for j in range(levels) if abs(s - j) <= 1],
                "d": list(range(levels)),
            }[mode]
            for j in allowed:
                entropies = []
                for u, label in zip(online[s][side], labels[s][side], strict=True):
                    logits = [u @ v / tau for v in targets[j][1 - side]]
                    entropies.append(np.log(np.sum(np.exp(logits))) - logits[label])
                total += weights[s] * 2 * tau * np.mean(entropies) / len(allowed)
    return total


def our_loss(online, targets, labels, mode, weights, tau):
    return losses.multi_level(
        [jnp.asarray(x, jnp.float32) for x in online],
        [jnp.asarray(x, jnp.float32) for x in targets],
        [jnp.asarray(x) for x in labels],
        matching=losses.matching_matrix(mode, len(online)),
        weights=weights,
        pair_loss=partial(losses.scaled_info_nce, temperature=tau),
    )


@pytest.mark.parametrize("mode", losses.MATCHING_MODES)
@pytest.mark.parametrize("levels, tau", [(4, 1.0), (3, 0.2), (1, 0.5)])
def test_all_modes_equal_a_plain_loop(mode, levels, tau):
    case, weights = random_case(levels), (0.5, 0.25, 0.125, 0.125)
    loss, _ = our_loss(*case, mode, weights, tau)
    assert float(loss) == pytest.approx(numpy_loss(*case, mode, weights, tau), rel=1e-5)


def test_permuting_targets_with_their_labels_changes_nothing():
    online, targets, labels = random_case()
    order = np.random.default_rng(1).permutation(6)
    where = np.argsort(order)
    loss, metrics = our_loss(
        online, targets, labels=labels, mode="d", weights=(0.5, 0.25, 0.125, 0.125), tau=0.3
    )
    moved = our_loss(
        online,
        [t[:, order] for t in targets],
        labels=[where[x] for x in labels],
        mode="d",
        weights=(0.5, 0.25, 0.125, 0.125),
        tau=0.3,
    )
    assert float(moved[0]) == pytest.approx(float(loss), rel=1e-6)
    for name, value in metrics.items():
        assert float(moved[1][name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name


def test_no_gradient_reaches_the_target():
    online, targets, labels = random_case()

    def loss(online, targets):
        return our_loss(
            online, targets, labels=labels, mode="c", weights=(0.5, 0.25, 0.125, 0.125), tau=1.0
        )[0]

    to_online, to_targets = jax.grad(loss, argnums=(0, 1))(
        [jnp.asarray(x, jnp.float32) for x in online],
        [jnp.asarray(x, jnp.float32) for x in targets],
    )
    assert all(float(jnp.abs(g).max()) == 0.0 for g in to_targets)
    assert all(float(jnp.abs(g).max()) > 1e-4 for g in to_online)


@pytest.mark.parametrize(
    "mode, rows",
    [
        ("a", [[1, 0, 0], [1, 0, 0], [1, 0, 0]]),
        ("b", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("c", [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]]),
        ("d", [[1 / 3] * 3] * 3),
    ],
)
def test_matching_matrices(mode, rows):
    np.testing.assert_allclose(losses.matching_matrix(mode, 3), rows)


def test_mode_a_needs_the_targets_of_level_0_alone():
    needed = [losses.target_levels(losses.matching_matrix(m, 4)) for m in losses.MATCHING_MODES]
    assert needed == [1, 4, 4, 4]
    with pytest.raises(UserError, match="'e' is not one of a, b, c, d"):
        losses.matching_matrix("e", 4)


def test_normalize_keeps_a_zero_vector_and_its_gradient_finite():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.unit_rows(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert bool(jnp.isfinite(jax.grad(lambda y: losses.unit_rows(y).sum())(x)).all())


def test_std_metric_tells_spread_from_collapse():
    online, targets, labels = random_case(images=64, dimensions=16)
    weights = (0.5, 0.25, 0.125, 0.125)
    _, spread = our_loss(online, targets, labels=labels, mode="a", weights=weights, tau=1.0)
    flat = [np.broadcast_to(x[:, :1], x.shape) for x in online]
    _, collapsed = our_loss(flat, targets, labels=labels, mode="a", weights=weights, tau=1.0)
    assert float(spread["std/level0"]) == pytest.approx(1 / 4, rel=0.1)
    assert float(collapsed["std/level0"]) < 1e-6
