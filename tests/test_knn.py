"""Weighted kNN over eight devices against scikit-learn and one device; the evaluation view."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mcl_jax import sharding
from mcl_jax.evaluate import embedding, knn

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(5, 16))


def clusters(count):
    labels = RNG.integers(0, 5, count)
    return (CENTERS[labels] + RNG.normal(size=(count, 16)) * 1.5).astype(np.float32), labels


@pytest.fixture(scope="module")
def meshes():
    return sharding.make_mesh(), sharding.make_mesh(jax.devices()[:1])


def test_eight_devices_vote_as_scikit_learn_and_as_one_device(meshes):
    (features, labels), (queries, _) = clusters(301), clusters(101)  # neither divides by 8
    ours = [
        knn.classify(features, labels, queries, neighbors=20, temperature=0.07, mesh=mesh, chunk=32)
        for mesh in meshes
    ]
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(unit(features), labels)
    np.testing.assert_array_equal(ours[0], reference.predict(unit(queries)))
    np.testing.assert_array_equal(ours[0], ours[1])


def test_equally_near_images_come_in_the_order_of_the_split(meshes):
    # four directions only, so that every query has many exact ties, on all devices
    bank = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, 50)]
    queries = np.eye(4, dtype=np.float32)[np.arange(16) % 4]
    expected = [np.flatnonzero(bank[:, i % 4])[:5] for i in range(16)]
    for mesh in meshes:
        for shuffled in (False, True):  # rows dealt out one by one, as batches deal them
            rows = knn.place(bank, np.arange(50), mesh)
            if shuffled:
                deal = np.arange(len(rows.label)).reshape(-1, mesh.size).T.reshape(-1)
                rows = jax.tree.map(lambda x, deal=deal, to=rows.label.sharding: jax.device_put(
                    np.asarray(x)[deal], to), rows)  # fmt: skip
            neighbors = knn.nearest_function(mesh, 5, 1024)(rows, queries)
            np.testing.assert_array_equal(neighbors.position, expected)
            np.testing.assert_array_equal(neighbors.label, expected)


def test_fewer_images_than_neighbors_or_devices(meshes):
    bank, labels = np.eye(3, dtype=np.float32), np.array([2, 1, 1])
    query = np.array([[1, 0.6, 0.6]], np.float32)
    # cosines .76 for class 2, .46 twice for class 1: at tau .07 e^4.4 against 2, at 1 e^.3
    for temperature, expected in ((0.07, 2), (1.0, 1)):
        out = knn.classify(
            bank, labels, query, neighbors=20, temperature=temperature, mesh=meshes[0], chunk=64
        )
        np.testing.assert_array_equal(out, [expected])


def test_an_even_vote_goes_to_the_lowest_class():
    neighbors = knn.Neighbors(jnp.zeros((1, 4)), jnp.arange(4)[None], jnp.array([[3, 1, 1, 3]]))
    assert int(knn.vote(neighbors, 0.07)[0]) == 1


def test_measure_counts_class_and_image_of_shrunk_queries(meshes):
    mesh = meshes[0]
    bank = knn.place(np.eye(4)[[0, 1, 2]], np.array([0, 1, 2]), mesh)
    full = np.eye(4)[[0, 1, 2, 3, 0]] + np.array([0, 0, 0, 0, 0.1])[:, None]
    labels = np.array([0, 1, 2, 2, 0])
    # image 1 shrunk looks like image 2, image 4 like image 0: right class, other image
    small = full[[0, 2, 2, 3, 0]]
    queries = {"": knn.place(full, labels, mesh), "/shrink2": knn.place(small, labels, mesh)}
    # in the pyramid, every shrunk image is found, and the bank is another
    queries |= {"/P5": queries[""], "/P4": queries[""]}
    bank = {"": bank, "/P5": knn.place(np.eye(4), np.arange(4), mesh)}
    values = knn.measure(bank, queries, neighbors=1, temperature=0.07, mesh=mesh, chunk=8)
    # image 3 is as near to all of the bank: class 0, the first, which is wrong
    assert values == {
        **{"knn": 4 / 5, "knn/shrink2": 3 / 5, "retrieval/shrink2": 3 / 5},
        **{"knn/P5": 4 / 5, "knn/P4": 4 / 5, "retrieval/P4": 1.0},
    }


def test_the_evaluation_view_is_the_center_at_seven_eighths():
    canvas = np.zeros((96, 96, 3), np.uint8)
    canvas[:64, :80] = np.arange(80)[None, :, None]  # the column's number
    view = embedding.center_view(
        jnp.asarray(canvas), jnp.array([64, 80]), 56, mean=(0, 0, 0), std=(1 / 255,) * 3
    )
    # 64 * 7/8 = 56 px wide, centered in 80 columns: 12 .. 67, at 1:1
    np.testing.assert_allclose(view[0, :, 0], np.arange(12, 68), atol=1e-3)
