"""FCOS parts against hand-made boxes and plain re-statements, all on tiny arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcl_jax.evaluate.detection import fcos
from mcl_jax.evaluate.detection.nms import suppress

# Two levels of a 32 px image: 16 locations of stride 8, then 4 of stride 16; P3 takes distances
# up to 10 px.
GRID = fcos.make_grid(32, ("P3", "P4"), (10.0,))


# Jitted: compiling one function is quicker than compiling its operations one by one.
assigned = jax.jit(lambda boxes, labels: fcos.assign(boxes, labels, GRID, 1.5))
loss_terms = jax.jit(lambda outputs, targets: fcos.losses(outputs, targets, alpha=0.25, gamma=2.0))


def assign(boxes, labels):
    return jax.tree.map(np.asarray, assigned(np.float32(boxes), np.array(labels)))


def test_grid_holds_cell_centers_level_after_level():
    assert GRID.points.shape == (20, 2)
    np.testing.assert_array_equal(
        GRID.points[[0, 1, 4, 16, 19]], [[4, 4], [4, 12], [12, 4], [8, 8], [24, 24]]
    )
    np.testing.assert_array_equal(GRID.strides, [8] * 16 + [16] * 4)
    np.testing.assert_array_equal(GRID.high, [10] * 16 + [np.inf] * 4)


def test_a_small_box_goes_to_the_fine_level_and_a_large_one_to_the_coarse():
    targets = assign([[0, 0, 10, 10], [0, 0, 32, 30]], [3, 5])
    fine, coarse = targets.classes[:16], targets.classes[16:]
    # Only (4, 4) lies inside the small box; every distance from it is at most 6.
    assert np.flatnonzero(fine == 3).tolist() == [0] and not (fine == 5).any()
    np.testing.assert_array_equal(coarse, [5, 5, 5, 5])
    np.testing.assert_array_equal(targets.distances[0], [4, 4, 6, 6])
    np.testing.assert_array_equal(targets.distances[16], [8, 8, 24, 22])
    assert targets.centerness[0] == pytest.approx(4 / 6)
    assert targets.centerness[16] == pytest.approx(np.sqrt(8 / 24 * 8 / 22))


def test_of_several_boxes_the_smallest_wins():
    boxes, labels = [[0, 0, 12, 12], [2, 2, 8, 8], [0, 0, 11, 11]], [0, 1, 2]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        targets = assign(np.array(boxes)[order], np.array(labels)[order])
        assert targets.classes[0] == 1
        np.testing.assert_array_equal(targets.distances[0], [2, 2, 4, 4])


def test_locations_far_from_the_center_are_background():
    wide = fcos.make_grid(64, ("P3",), ())
    box = jnp.array([[0.0, 0.0, 64.0, 64.0]])
    near = fcos.assign(box, jnp.array([0]), wide, 1.5).classes.reshape(8, 8)
    # |center - 32| < 12 px: columns and rows at 28 and 36 alone
    np.testing.assert_array_equal(
        np.argwhere(np.asarray(near) == 0), [[3, 3], [3, 4], [4, 3], [4, 4]]
    )


def test_padding_and_empty_images_are_background():
    targets = assign([[0, 0, 10, 10], [0, 0, 32, 32]], [-1, -1])
    assert (targets.classes == -1).all() and (targets.centerness == 0).all()


def test_decode_inverts_encode():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 20, (7, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 20, (7, 2))], -1).astype(np.float32)
    points = rng.uniform(0, 32, (7, 2)).astype(np.float32)
    # float32 sums of numbers below 64
    np.testing.assert_allclose(fcos.decode(fcos.encode(boxes, points), points), boxes, atol=1e-5)


def test_giou_by_hand():
    ones = jnp.ones(4)
    assert float(fcos.giou(ones, ones)) == pytest.approx(1.0)
    # 2x2 inside 4x4: 4/16, and the hull is the larger box itself
    assert float(fcos.giou(ones, 2 * ones)) == pytest.approx(0.25)
    # 3x2 up and 3x2 down share 2x2: union 8 fills the hull 4x2
    assert float(fcos.giou(jnp.array([2.0, 1, 1, 1]), jnp.array([1.0, 1, 2, 1]))) == pytest.approx(
        0.5
    )
    # 3x2 upright and 2x3 lying, both about (0, 0) to the lower right: shared 4, union 8, hull 9
    first, second = jnp.array([1.0, 1, 2, 1]), jnp.array([1.0, 1, 1, 2])
    assert float(fcos.giou(first, second)) == pytest.approx(4 / 8 - 1 / 9)


def test_losses_equal_a_plain_restatement():
    rng = np.random.default_rng(1)
    images, places, classes, alpha, gamma = 2, 5, 3, 0.25, 2.0
    logits = rng.normal(size=(images, places, classes))
    distances = rng.uniform(1, 9, (images, places, 4))
    center_logits = rng.normal(size=(images, places))
    labels = np.array([[0, -1, 2, -1, 1], [-1, -1, -1, 2, -1]])
    wanted = rng.uniform(1, 9, (images, places, 4))
    wanted[labels < 0] = -50.0  # what background holds must not matter
    center = np.where(labels >= 0, rng.uniform(0.2, 1, labels.shape), 0.0)

    focal = boxes = entropy = 0.0
    for i, j in np.ndindex(labels.shape):
        for c in range(classes):
            p = 1 / (1 + np.exp(-logits[i, j, c]))
            if labels[i, j] == c:
                focal -= alpha * (1 - p) ** gamma * np.log(p)
            else:
                focal -= (1 - alpha) * p**gamma * np.log(1 - p)
        if labels[i, j] >= 0:
            (top, left, bottom, right), (wt, wl, wb, wr) = distances[i, j], wanted[i, j]
            shared = (min(top, wt) + min(bottom, wb)) * (min(left, wl) + min(right, wr))
            hull = (max(top, wt) + max(bottom, wb)) * (max(left, wl) + max(right, wr))
            union = (top + bottom) * (left + right) + (wt + wb) * (wl + wr) - shared
            boxes += (1 - shared / union + (hull - union) / hull) * center[i, j]
            q = 1 / (1 + np.exp(-center_logits[i, j]))
            entropy -= center[i, j] * np.log(q) + (1 - center[i, j]) * np.log(1 - q)

    found = loss_terms(
        fcos.Outputs(*(jnp.float32(x) for x in (logits, distances, center_logits))),
        fcos.Outputs(jnp.array(labels), jnp.float32(wanted), jnp.float32(center)),
    )
    expected = {"classes": focal / 4, "boxes": boxes / center.sum(), "centerness": entropy / 4}
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5)  # float32 sums of 30 terms


def test_a_batch_without_objects_has_finite_loss_and_gradient():
    outputs = fcos.Outputs(jnp.zeros((1, 20, 2)), jnp.ones((1, 20, 4)), jnp.zeros((1, 20)))
    targets = jax.tree.map(lambda x: x[None], assign([[0, 0, 0, 0]], [-1]))
    total = jax.jit(jax.value_and_grad(lambda o: sum(loss_terms(o, targets).values())))
    loss, grads = total(outputs)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not grads.distances.any() and not grads.centerness.any()


def naive_nms(boxes, labels, threshold):
    kept = []
    for i, (top, left, bottom, right) in enumerate(boxes):
        clear = True
        for j in kept:
            height = min(bottom, boxes[j][2]) - max(top, boxes[j][0])
            width = min(right, boxes[j][3]) - max(left, boxes[j][1])
            shared = max(height, 0) * max(width, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if labels[i] == labels[j] and shared > threshold * (sum(areas) - shared):
                clear = False
        if clear:
            kept.append(i)
    return [i in kept for i in range(len(boxes))]


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_nms_equals_a_plain_loop(threshold):
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 12, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 12, (40, 2))], -1).astype(np.float32)
    labels = rng.integers(0, 2, 40)
    kept = np.asarray(suppress(jnp.array(boxes), jnp.array(labels), threshold))
    assert kept.tolist() == naive_nms(boxes.tolist(), labels.tolist(), threshold)
    assert 0 < kept.sum() < 40


def test_outputs_that_say_the_targets_are_detected_as_the_boxes():
    boxes = np.array([[1, 2, 11, 12], [0, 2, 30, 32]], np.float32)
    targets = assign(boxes, [1, 0])
    sure = 20.0 * (2 * np.eye(3)[targets.classes] * (targets.classes >= 0)[:, None] - 1)
    outputs = fcos.Outputs(jnp.array(sure), jnp.array(targets.distances), jnp.full(20, 20.0))
    detect = partial(
        fcos.detect, score_threshold=0.05, candidates=30, nms_iou=0.6, max_detections=5
    )
    found = jax.jit(lambda o, extent: detect(o, GRID.points, extent))(outputs, np.array([32, 31]))
    assert (np.asarray(found.scores) > 0.99).tolist() == [True, True, False, False, False]
    assert not found.scores[2:].any()
    order = np.argsort(-np.asarray(found.labels[:2]))
    np.testing.assert_allclose(found.boxes[:2][order], [[1, 2, 11, 12], [0, 2, 30, 31]], atol=1e-5)


def test_head_starts_at_its_prior_with_a_scale_per_level():
    head = fcos.Head(("P3", "P4"), 3, 4, 1, 2, 0.01, jnp.float32)
    pyramid = {"P3": jnp.ones((1, 4, 4, 6)), "P4": jnp.ones((1, 2, 2, 6)), "P2": None}
    outputs, variables = jax.jit(lambda: head.init_with_output(jax.random.key(0), pyramid))()
    assert outputs.classes.shape == (1, 20, 3) and outputs.centerness.shape == (1, 20)
    # kernels of std 0.01 move the bias -log(99) by a few percent
    np.testing.assert_allclose(outputs.classes, -np.log(99), rtol=0.1)
    np.testing.assert_allclose(outputs.distances[0, :16], 8, rtol=0.3)
    np.testing.assert_allclose(outputs.distances[0, 16:], 16, rtol=0.3)
    assert variables["params"]["scales"].shape == (2,)
