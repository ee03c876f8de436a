"""Linear classifiers: the closed-form optimum, torch's SGD, top-k, a grid of learning rates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_or_skip import torch

from mcl_jax.evaluate.linear import classifier


def gaussians(rng, centers, rows):
    """Rows of classes that share one covariance: their best classifier is linear."""
    labels = rng.integers(0, len(centers), rows)
    mix = np.linspace(-0.1, 0.1, centers.shape[1] ** 2).reshape(2 * centers.shape[1:])
    noise = rng.normal(size=(rows, centers.shape[1])) @ (np.eye(centers.shape[1]) + mix)
    return (centers[labels] + noise).astype(np.float32), labels.astype(np.int32)


def discriminant(features, labels, classes):
    """Linear discriminant analysis in closed form: kernel [F, K] and bias [K] in float64."""
    means = np.stack([features[labels == k].mean(0) for k in range(classes)]).astype(np.float64)
    centered = features - means[labels]
    kernel = np.linalg.solve(centered.T @ centered / len(features), means.T)
    prior = np.log(np.bincount(labels, minlength=classes) / len(labels))
    return kernel, prior - (means.T * kernel).sum(0) / 2


def cross_entropy(scores, labels):
    top = scores.max(1, keepdims=True)
    total = np.log(np.exp(scores - top).sum(1)) + top[:, 0]
    return (total - scores[np.arange(len(labels)), labels]).mean()


@partial(jax.jit, static_argnames=("classes", "steps", "batch"))
def train(features, labels, lrs, *, classes, steps, batch):
    """`steps` of SGD on the rows in order, cosine to 0."""
    lr = classifier.learning_rates(lrs, "cosine", steps)
    x = features.reshape(-1, batch, features.shape[1])
    y = labels.reshape(-1, batch)

    def body(state, step):
        i = step % len(x)
        return classifier.update(
            state, x[i], labels=y[i], lr=lr(step), momentum=0.9, weight_decay=0.0, axis_name=None
        )

    state = classifier.new(len(lrs), features.shape[1], classes)
    return jax.lax.scan(body, state, jnp.arange(steps))


def test_training_reaches_the_closed_form_optimum():
    rng = np.random.default_rng(0)
    classes, channels, rows = 4, 6, 4000
    centers = rng.normal(size=(classes, channels))
    features, labels = gaussians(rng, centers, rows)
    test_features, truth = gaussians(rng, centers, rows)
    state, _ = train(features, labels, (1.0, 3.0), classes=classes, steps=1000, batch=1000)
    kernel, bias = discriminant(features, labels, classes)
    best = ((test_features @ kernel + bias).argmax(1) == truth).mean()
    assert 0.6 < best < 0.95  # neither trivial nor hopeless
    for i in range(2):
        params = {name: np.asarray(value[i]) for name, value in state.params.items()}
        scores = test_features @ params["kernel"] + params["bias"]
        # Both estimate the same boundaries; the rows on which they differ are a fair coin each, so
        # the accuracies differ by at most 3 sqrt(differing rows) rows.
        differing = (scores.argmax(1) != (test_features @ kernel + bias).argmax(1)).sum()
        assert differing < 0.03 * rows
        assert abs((scores.argmax(1) == truth).mean() - best) < 3 * np.sqrt(differing) / rows
        # no linear classifier fits the training rows better than the minimum of their cross-entropy
        reached = cross_entropy(features @ params["kernel"] + params["bias"], labels)
        assert reached < cross_entropy(features @ kernel + bias, labels) + 1e-6


def test_steps_equal_torchs_sgd_with_cosine_annealing():
    rng = np.random.default_rng(1)
    rows, channels, classes, steps = 12, 5, 7, 4
    features = rng.normal(size=(rows, channels)).astype(np.float32)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    labels[[2, 5]] = -1  # rows that are not counted
    state, lr = (
        classifier.new(1, channels, classes),
        classifier.learning_rates((10.0,), "cosine", 8),
    )
    model = torch.nn.Linear(channels, classes)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    sgd = torch.optim.SGD(model.parameters(), lr=10.0, momentum=0.9, weight_decay=0.01)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=8)
    entropy = torch.nn.CrossEntropyLoss(ignore_index=-1)
    update = jax.jit(partial(classifier.update, momentum=0.9, weight_decay=0.01, axis_name=None))
    for _ in range(steps):
        state, values = update(state, features, labels, lr(state.step))
        sgd.zero_grad()
        loss = entropy(model(torch.from_numpy(features)), torch.from_numpy(labels).long())
        loss.backward()
        sgd.step()
        annealing.step()
        # float32 sums in another order, grown by steps of lr 10
        assert float(values["loss"][0]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert int(state.step) == steps
    ours = (state.params["kernel"][0].T, state.params["bias"][0])
    for mine, theirs in zip(ours, model.parameters(), strict=True):
        np.testing.assert_allclose(mine, theirs.detach(), rtol=1e-4, atol=1e-4)


def test_top_k_by_hand():
    params = {"kernel": np.eye(6, dtype=np.float32)[None], "bias": np.zeros((1, 6), np.float32)}
    params = jax.tree.map(lambda x: np.concatenate([x, 0 * x, x * np.nan]), params)
    scores = np.array([[5, 4, 3, 2, 1, 0]] * 4, np.float32)
    labels = np.array([0, 4, 5, -1], np.int32)  # best, fifth, last, not counted
    # the second classifier finds all classes equal (ranked by number), the third has diverged
    np.testing.assert_array_equal(classifier.hits(params, scores, labels=labels, k=1), [1, 1, 0])
    np.testing.assert_array_equal(classifier.hits(params, scores, labels=labels, k=5), [2, 2, 0])


def test_a_grid_equals_separate_runs():
    rng = np.random.default_rng(2)
    features, labels = gaussians(rng, rng.normal(size=(3, 4)), 64)
    lrs = (0.1, 1.0, 10.0)
    grid, values = train(features, labels, lrs, classes=3, steps=20, batch=16)
    for i, lr in enumerate(lrs):
        alone, single = train(features, labels, (lr,), classes=3, steps=20, batch=16)
        for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(grid.params), strict=True):
            # matrix products batched otherwise: rounding, grown over 20 steps
            np.testing.assert_allclose(a[0], b[i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(single["loss"][:, 0], values["loss"][:, i], rtol=1e-4, atol=1e-6)
