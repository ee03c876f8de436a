"""Color operations against torchvision's formulas, and the draws of the jitter."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torchvision_reference import LUMA, colors, image_of, planes_of, torchvision_jitter

from mcl_jax.views import color

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AMOUNTS = [(0.6, 1.4, 0.8, 0.1), (1.4, 0.6, 1.2, -0.1), (1.0, 1.0, 1.0, 0.37), (1.0, 1.3, 1.0, 0.0)]


FORMULATIONS = [color.recolor, color.recolor_slot_by_slot, color.recolor_in_two_passes]


@pytest.mark.parametrize("recolor", FORMULATIONS)
def test_jitter_is_torchvisions_in_each_of_the_24_orders(recolor):
    image = colors()
    orders = list(itertools.permutations(range(4)))
    jitter = functools.partial(recolor, jitters=True, grays=False)
    jitter = jax.jit(jax.vmap(jax.vmap(jitter, (None, None, 0)), (None, 0, None)))
    got = jitter(planes_of(image), jnp.array(AMOUNTS), jnp.array(orders))
    for (i, amounts), (j, order) in itertools.product(enumerate(AMOUNTS), enumerate(orders)):
        expected = image
        for op in order:
            expected = torchvision_jitter(expected, op, amounts[op])
        np.testing.assert_allclose(
            image_of(got[i, j]), expected, atol=5e-6
        )  # ~40 roundings of 6e-8


@pytest.mark.parametrize("recolor", FORMULATIONS)
def test_gray_is_the_luma_of_what_was_jittered_or_not(recolor):
    planes, (amounts, *_), order = planes_of(colors()), map(jnp.array, AMOUNTS), jnp.arange(4)
    recolor = jax.jit(recolor)
    assert (recolor(planes, amounts, order, False, False) == planes).all()
    np.testing.assert_array_equal(
        recolor(planes, amounts, order, False, True), color.grayscale(planes)
    )
    jittered = recolor(planes, amounts, order, True, False)
    gray = recolor(planes, amounts, order, True, True)
    np.testing.assert_allclose(gray, color.grayscale(jittered), atol=3e-7)


def test_jitter_draws_every_order_alike_and_amounts_in_their_ranges():
    keys = jax.random.split(jax.random.key(4), 24_000)
    draw = jax.jit(jax.vmap(functools.partial(color.draw_jitter, widths=(0.4, 1.5, 0.2), hue=0.1)))
    amounts, orders = map(np.asarray, draw(keys))
    counts = np.unique(orders @ 4 ** np.arange(4), return_counts=True)[1]
    assert len(counts) == 24
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(1000)
    for column, low, high in zip(amounts.T, (0.6, 0, 0.8, -0.1), (1.4, 2.5, 1.2, 0.1), strict=True):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high
        assert abs(column.mean() - (low + high) / 2) < 0.01 * (high - low)
    assert np.abs(np.corrcoef(np.c_[amounts, orders[:, 0]].T) - np.eye(5)).max() < 0.035  # 5 sigma


def test_grayscale_solarize_and_normalize():
    image, threshold = colors(), 128 / 255
    planes = planes_of(image)
    gray = np.repeat((image @ LUMA)[..., None], 3, -1)
    np.testing.assert_allclose(image_of(color.grayscale(planes)), gray, atol=3e-7)
    image[2, :2] = np.float32(threshold)
    solarized = np.where(image >= np.float32(threshold), 1 - image, image)
    got = color.solarize(planes_of(image), threshold)
    np.testing.assert_allclose(image_of(got), solarized, atol=1e-7)
    normal = (image - MEAN) / STD
    got = color.standardize(planes_of(image), MEAN, STD)
    np.testing.assert_allclose(image_of(got), normal, atol=1e-6)
