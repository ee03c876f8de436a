"""The montage: exact placement, copies, level counts, mask, and no communication."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcl_jax import montage, sharding
from mcl_jax.errors import UserError

H = 32


def layout(levels=4, copies=(1, 1, 1, 2), shrink="nearest", boundary_sigma=0.0):
    return montage.Layout(
        "montage", levels, copies=copies, shrink=shrink, boundary_sigma=boundary_sigma
    )


def random_views(levels, images, seed=0):
    return jax.random.normal(jax.random.key(seed), (levels, images, H, H, 3))


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [32, 64, 4, 12])
def test_every_sub_image_is_bit_equal_to_its_strided_source(levels, images):
    views = random_views(levels, images)
    counts = montage.canvas_counts(images, layout(levels))
    orders = montage.draw_orders(jax.random.key(1)[None], images, counts)
    canvases, labels, _ = jax.tree.map(
        np.asarray, montage.build(views, orders, layout=layout(levels), dtype=views.dtype)
    )
    views = np.asarray(views)
    assert canvases.shape == (sum(counts), H, H, 3)
    start = 0
    for s, count in enumerate(counts):
        r, side = 2**s, H // 2**s
        for position, image in enumerate(labels[s]):
            canvas, row, column = position // r**2, position % r**2 // r, position % r
            tile = canvases[start + canvas, row * side :, column * side :][:side, :side]
            np.testing.assert_array_equal(tile, views[s, image, ::r, ::r])
        start += count


def test_each_image_appears_once_once_once_twice():
    counts = montage.canvas_counts(128, layout())
    assert counts == (128, 32, 8, 4)
    labels = montage.draw_orders(jax.random.key(3)[None], 128, counts)
    for order, copies in zip(labels, (1, 1, 1, 2), strict=True):
        np.testing.assert_array_equal(np.bincount(order, minlength=128), np.full(128, copies))
    np.testing.assert_array_equal(labels[0], np.arange(128))


def test_a_level_below_one_canvas_repeats_images_to_fill_it():
    counts = montage.canvas_counts(12, layout())
    assert counts == (12, 3, 1, 1)
    orders = montage.draw_orders(jax.random.key(0)[None], 12, counts)
    for order, tiles in zip(orders[2:], (16, 64), strict=True):
        appearances = np.bincount(order, minlength=12)
        assert order.shape == (tiles,)
        assert appearances.min() >= tiles // 12 and appearances.max() <= tiles // 12 + 1


@pytest.mark.parametrize(
    "images, options, message",
    [
        (6, {}, "level 1: 6 images .* x 1 copies = 6 sub-images .* multiple of 4"),
        (40, {}, "level 2: 40 images .* multiple of 16"),
        (48, {}, "level 3: 48 images .* x 2 copies = 96 .* multiple of 32"),
    ],
)
def test_a_layout_that_cannot_work_prints_its_numbers(images, options, message):
    with pytest.raises(UserError, match=message):
        montage.canvas_counts(images, layout(**options))


def test_two_keys_shuffle_differently_and_one_key_replays():
    draw = lambda seed: montage.draw_orders(jax.random.key(seed)[None], 64, (64, 16, 4, 2))  # noqa: E731
    for a, b, c in list(zip(draw(0), draw(0), draw(1), strict=True))[1:]:
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_antialiased_shrinking_averages_blocks():
    images = random_views(1, 2)[0]
    expected = np.asarray(images).reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    np.testing.assert_allclose(montage.shrink(images, 4, "antialias"), expected, atol=1e-6)


@pytest.mark.parametrize("k", [0.75, 0.5])
def test_the_boundary_mask_is_the_papers_gaussian_on_shrunk_levels_alone(k):
    views = jnp.ones((2, 4, H, H, 3))
    orders = montage.draw_orders(jax.random.key(0)[None], 4, (4, 1))
    canvases, *_ = montage.build(
        views, orders, layout=layout(2, boundary_sigma=k), dtype=views.dtype
    )
    np.testing.assert_array_equal(canvases[:4], 1.0)
    side = H // 2
    x = np.arange(side) - (side - 1) / 2
    profile = np.exp(-(x**2) / (2 * (k * side) ** 2))
    expected = np.tile(profile[:, None] * profile, (2, 2))
    np.testing.assert_allclose(canvases[4, ..., 0], expected, rtol=1e-6)


def test_first_copies_finds_every_images_first_sub_image():
    labels = jnp.array([2, 0, 2, 1, 0, 1])
    np.testing.assert_array_equal(montage.first_copies(labels, 3), [1, 3, 0])


def test_the_compiled_montage_has_no_collective():
    mesh, images = sharding.make_mesh(), 32
    counts = montage.canvas_counts(images, layout())

    def body(views, seed):
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index(sharding.DATA_AXIS))
        orders = montage.draw_orders(key[None], images, counts)
        return montage.build(views, orders, layout=layout(), dtype=views.dtype).canvases

    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(spec(None, sharding.DATA_AXIS), spec()),
        out_specs=spec(sharding.DATA_AXIS),
    )
    views = jax.ShapeDtypeStruct((4, images * mesh.size, H, H, 3), jnp.float32)
    text = jax.jit(mapped).lower(views, 0).compile().as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
