"""Weighted kNN against scikit-learn, and the evaluation view."""

import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from mcl_jax.evaluate import knn


def test_votes_equal_scikit_learns():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 300)
    features = (centres[labels] + rng.normal(size=(300, 16)) * 1.5).astype(np.float32)
    queries = (centres[rng.integers(0, 5, 101)] + rng.normal(size=(101, 16)) * 1.5).astype(
        np.float32
    )
    ours = knn.classify(features, labels, queries, neighbours=20, temperature=0.07, chunk=32)

    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(unit(features), labels)
    np.testing.assert_array_equal(ours, reference.predict(unit(queries)))


def test_fewer_images_than_neighbours():
    out = knn.classify(
        np.eye(3, dtype=np.float32), np.array([0, 1, 1]), np.eye(3, dtype=np.float32)[:1],
        neighbours=20, temperature=0.07,
    )  # fmt: skip
    np.testing.assert_array_equal(out, [0])


def test_the_evaluation_view_is_the_centre_at_seven_eighths():
    canvas = np.zeros((96, 96, 3), np.uint8)
    canvas[:64, :80] = np.arange(80)[None, :, None]  # the column's number
    view = knn.centre_view(
        jnp.asarray(canvas), jnp.array([64, 80]), 56, mean=(0, 0, 0), std=(1 / 255,) * 3
    )
    # 64 * 7/8 = 56 px wide, centred in 80 columns: 12 .. 67, at 1:1
    np.testing.assert_allclose(view[0, :, 0], np.arange(12, 68), atol=1e-3)
