"""Augmentation: crop and blur against PIL and torchvision, the draws, and views as a whole."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from PIL import Image
from torchvision_reference import (
    colors,
    image_of,
    photo,
    pil_resample,
    planes_of,
    torchvision_blur,
    torchvision_box,
    torchvision_jitter,
)

from mcl_jax.errors import UserError
from mcl_jax.settings.records import fill
from mcl_jax.views import augment, color, resample

VALUES = {
    "area": (0.2, 1.0),
    "aspect": (3 / 4, 4 / 3),
    "flip_prob": 0.5,
    "jitter_prob": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "grayscale_prob": 0.2,
    "blur_prob": (1.0, 0.1),
    "blur_sigma": (0.1, 2.0),
    "solarize_prob": (0.0, 0.2),
    "solarize_threshold": 128 / 255,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
SETTINGS = augment.AugmentSettings(**VALUES)


def on_canvas(image, size):
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


@pytest.fixture(scope="module")
def batch():
    """Three images on canvases of 48 px, and jitted `views` of 16 px."""
    shapes = [(30, 48), (48, 40), (33, 21)]
    canvas = np.stack([on_canvas(photo(i, *shape), 48) for i, shape in enumerate(shapes)])
    return canvas, np.array(shapes, np.int32), jax.jit(whole_views)


def whole_views(key, canvas, extent):
    """[V, S, b, 16, 16, 3]"""
    levels = augment.views(
        key, canvas, extent=extent, settings=SETTINGS, image_size=16, strides=(1, 1, 1, 1)
    )
    return jnp.stack(levels, axis=1)


BOXES = [(0, 0, 60, 90), (7, 21, 33, 40), (50, 3, 9, 80), (59, 89, 1, 1), (12, 30, 16, 16)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("flip", [False, True])
def test_crop_is_pillows_antialiased_bilinear(box, flip):
    image = photo(0, 60, 90)
    crop = jax.jit(functools.partial(resample.crop, image_size=16))
    got = image_of(crop(on_canvas(image, 96), jnp.array(box), flip))
    mirror = slice(None, None, -1 if flip else 1)

    exact = pil_resample(image / 255, *box, 16)[:, mirror]
    np.testing.assert_allclose(got, exact, atol=5e-6)  # float32 coordinates: ulp(96) = 8e-6 px

    top, left, height, width = box
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    pillow = np.asarray(cut.resize((16, 16), Image.Resampling.BILINEAR))[:, mirror]
    # Pillow rounds to 8 bits after each of its two passes: half a step each.
    assert np.abs(got * 255 - pillow).max() <= 1.01


def test_compiled_crop_is_matrix_products_without_gathers():
    def crops(canvas, boxes, flips):
        one = functools.partial(resample.crop, image_size=16)
        return jax.vmap(jax.vmap(one, (None, 0, 0)))(canvas, boxes, flips)

    arguments = (
        jax.ShapeDtypeStruct((2, 48, 48, 3), jnp.uint8),
        jax.ShapeDtypeStruct((2, 8, 4), jnp.int32),
        jax.ShapeDtypeStruct((2, 8), jnp.bool_),
    )
    lowered = jax.jit(crops).lower(*arguments)
    assert " gather(" not in lowered.compile().as_text()
    assert len(re.findall(r"stablehlo\.dot_general", lowered.as_text())) == 2


@pytest.mark.parametrize("height, width", [(375, 500), (60, 300)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    draw = functools.partial(augment.draw_box, area=VALUES["area"], aspect=VALUES["aspect"])
    keys = jax.random.split(jax.random.key(1), 20_000)
    extent = jnp.array([height, width])
    boxes = np.asarray(jax.jit(jax.vmap(draw, (0, None)))(keys, extent))
    rng = np.random.default_rng(1)
    reference = [
        torchvision_box(rng, height, width, VALUES["area"], VALUES["aspect"]) for _ in range(20_000)
    ]

    def describe(boxes):
        top, left, h, w = np.array(boxes, float).T
        free_h, free_w = np.maximum(height - h, 1), np.maximum(width - w, 1)
        return np.stack([h * w / (height * width), np.log(w / h), top / free_h, left / free_w])

    top, left, h, w = boxes.T
    assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) > 0
    assert (top + h).max() <= height and (left + w).max() <= width
    for got, expected in zip(describe(boxes), describe(reference), strict=True):
        # Kolmogorov-Smirnov: 2.2 / sqrt(n / 2) is passed by chance less than once in 10^4.
        points = np.union1d(got, expected)
        cdfs = [np.searchsorted(np.sort(x), points, "right") / len(x) for x in (got, expected)]
        assert np.abs(cdfs[0] - cdfs[1]).max() < 2.2 / math.sqrt(len(got) / 2)


@pytest.mark.parametrize(
    "extent, box",
    [
        ((2, 500), (0, 248, 2, 3)),
        ((500, 2), (248, 0, 3, 2)),
        ((1, 1), (0, 0, 1, 1)),
        ((0, 0), (0, 0, 1, 1)),
    ],
)
def test_extents_where_nothing_fits_fall_back_to_the_center(extent, box):
    draw = functools.partial(augment.draw_box, area=VALUES["area"], aspect=VALUES["aspect"])
    keys = jax.random.split(jax.random.key(0), 50)
    boxes = np.asarray(jax.jit(jax.vmap(draw, (0, None)))(keys, jnp.array(extent)))
    np.testing.assert_array_equal(boxes, np.tile(box, (50, 1)))


@pytest.mark.parametrize("sigma", [0.03, 0.6, 2.0, 9.0])
@pytest.mark.parametrize("shape", [(12, 10), (1, 2)])
def test_blur_is_torchvisions_with_reflected_edges(sigma, shape):
    image = colors()[: shape[0], : shape[1]]
    got = jax.jit(resample.blur)(planes_of(image), sigma)
    np.testing.assert_allclose(image_of(got), torchvision_blur(image, sigma), atol=1e-6)


@pytest.mark.parametrize("image_size", [64, 224])
def test_sigma_is_in_px_at_224(image_size):
    keys = jax.random.split(jax.random.key(5), 5_000)
    draw = functools.partial(augment.draw_sigma, blur_sigma=(0.1, 2.0), image_size=image_size)
    sigma = np.asarray(jax.vmap(draw)(keys)) * 224 / image_size
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() < 2.0001
    assert abs(sigma.mean() - 1.05) < 5 * 1.9 / math.sqrt(12 * 5_000)


def test_view_applies_its_draws_in_the_order_of_the_design():
    always = {"flip_prob": 1, "jitter_prob": 1, "blur_prob": (1, 1), "solarize_prob": (1, 1)}
    settings = augment.AugmentSettings(**{**VALUES, **always, "grayscale_prob": 0})
    image, key = photo(6, 60, 90), jax.random.key(6)
    make = functools.partial(augment.view, settings=settings, side=0, image_size=32)
    got = np.asarray(jax.jit(make)(key, on_canvas(image, 96), jnp.array([60, 90])))

    keys = {draw: jax.random.fold_in(key, draw) for draw in augment.Draw}
    crop_key, extent = keys[augment.Draw.CROP], jnp.array([60, 90])
    box = augment.draw_box(crop_key, extent, area=VALUES["area"], aspect=VALUES["aspect"])
    expected = pil_resample(image / 255, *map(int, box), 32)[:, ::-1]
    amounts, order = color.draw_jitter(keys[augment.Draw.JITTER], (0.4, 0.4, 0.2), 0.1)
    for op in map(int, order):
        expected = torchvision_jitter(expected, op, float(amounts[op]))
    sigma_key = keys[augment.Draw.BLUR_SIGMA]
    sigma = augment.draw_sigma(sigma_key, VALUES["blur_sigma"], image_size=32)
    expected = torchvision_blur(expected, float(sigma))
    expected = np.where(expected >= 128 / 255, 1 - expected, expected)
    expected = (expected - VALUES["mean"]) / VALUES["std"]
    np.testing.assert_allclose(got, expected, atol=1e-4)  # rounding of [0, 1] / std, hue included


def test_every_operation_happens_as_often_as_its_probability_says():
    settings = augment.AugmentSettings(
        **{
            **VALUES,
            **{"area": (1.0, 1.0), "aspect": (1.0, 1.0), "contrast": 0, "saturation": 0, "hue": 0},
            **{"blur_prob": (0.7, 0.1), "solarize_prob": (0.4, 0.2), "solarize_threshold": 0.01},
            **{"blur_sigma": (56.0, 56.0), "mean": (0, 0, 0), "std": (1, 1, 1)},
        }
    )
    # Brighter to the right, lines along the rows that a blur wipes out, below 0.5 all over.
    ramp = np.linspace(30, 60, 8)[None, :, None] + 10 * (np.arange(8)[:, None, None] % 2)
    image = (ramp + np.array([0, 5, 20])).astype(np.uint8)
    make = functools.partial(augment.view, settings=settings, image_size=8)
    keys = jax.random.split(jax.random.key(7), 4_000)
    of_keys = jax.vmap(lambda key, side: make(key, image, jnp.array([8, 8]), side=side), (0, None))
    got = jax.jit(jax.vmap(of_keys, (None, 0)))(keys, jnp.arange(2))

    for side, views in enumerate(np.asarray(got)):
        solarized = views.mean((1, 2, 3)) > 0.5
        views = np.where(solarized[:, None, None, None], 1 - views, views)
        flipped = views[:, :, 0].mean((1, 2)) > views[:, :, -1].mean((1, 2))
        gray = np.ptp(views, axis=-1).max((1, 2)) < 1e-6
        lines = np.abs(views[:, 3] - views[:, 4]).mean((1, 2)) / views.mean((1, 2, 3))
        blurred = lines < 0.1
        jittered = np.abs(views.mean((1, 2, 3)) - (image / 255).mean()) > 1e-4
        untouched = ~gray & ~blurred
        rates = {
            "flip": (flipped, 0.5),
            "gray": (gray, 0.2),
            "solarize": (solarized, settings.solarize_prob[side]),
            "blur": (blurred, settings.blur_prob[side]),
            "jitter": (jittered[untouched], 0.8),
        }
        for name, (happened, probability) in rates.items():
            sigma = math.sqrt(probability * (1 - probability) / len(happened))
            assert abs(happened.mean() - probability) < 4 * sigma, (side, name, happened.mean())


def test_views_are_independent_of_the_batch_and_can_be_replayed_alone(batch):
    canvas, extent, make = batch
    key = jax.random.key(8)
    views = np.asarray(make(key, canvas, extent))
    assert views.shape == (2, 4, 3, 16, 16, 3) and views.dtype == np.float32

    others = make(key, canvas[[1, 1, 0]], extent[[1, 1, 0]])
    np.testing.assert_array_equal(others[:, :, 1], views[:, :, 1])
    same = np.asarray(make(key, canvas[[0, 0, 0]], extent[[0, 0, 0]])).reshape(24, -1)
    distance = np.abs(same[:, None] - same[None]).max(-1)
    assert distance[~np.eye(24, dtype=bool)].min() > 0.01
    assert np.abs(np.asarray(make(jax.random.key(9), canvas, extent)) - views).max() > 0.1

    alone = jax.jit(functools.partial(augment.view, settings=SETTINGS, image_size=16))
    for side, level, image in [(0, 3, 2), (1, 0, 1)]:
        own_key = augment.view_key(key, image, side=side, level=level)
        got = alone(own_key, canvas[image], extent[image], side=side)
        np.testing.assert_allclose(got, views[side, level, image], atol=2e-5)  # order of sums


def test_degenerate_extents_give_finite_views(batch):
    canvas, _, make = batch
    for extent in ([(1, 1), (2, 48), (48, 2)], [(0, 0), (1, 48), (3, 1)]):
        views = make(jax.random.key(11), canvas, np.array(extent, np.int32))
        assert np.isfinite(views).all()


def test_shards_make_their_views_without_communication(batch):
    canvas, extent, make = batch
    devices = jax.devices()[:2]
    mesh, spec = Mesh(devices, ("data",)), PartitionSpec("data")
    canvas, extent = (np.resize(x, (len(devices), *x.shape[1:])) for x in (canvas, extent))

    def shard(key, canvas, extent):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return whole_views(key, canvas, extent)

    out_spec = PartitionSpec(None, None, "data")
    sharded = jax.shard_map(
        shard, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=out_spec
    )
    key = jax.random.key(12)
    compiled = jax.jit(sharded).lower(key, canvas, extent).compile()
    collectives = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    assert not re.search(collectives, compiled.as_text())
    last = len(devices) - 1
    alone = make(jax.random.fold_in(key, last), canvas[last:], extent[last:])
    views = compiled(key, canvas, extent)
    np.testing.assert_allclose(views[:, :, last:], alone, atol=2e-5)  # order of sums


def test_strided_views_are_the_kept_pixels_of_whole_ones(batch):
    canvas, extent, make = batch
    strides = (1, 2, 4, 8)
    strided = functools.partial(augment.views, settings=SETTINGS, image_size=16, strides=strides)
    whole = make(jax.random.key(13), canvas, extent)
    for level, views in enumerate(jax.jit(strided)(jax.random.key(13), canvas, extent)):
        stride = strides[level]
        assert views.shape == (2, 3, 16 // stride, 16 // stride, 3)
        expected = whole[:, level, :, ::stride, ::stride]
        np.testing.assert_allclose(views, expected, atol=2e-5)  # order of sums


def test_settings_come_from_a_config_and_can_be_a_static_argument():
    config = ConfigDict({**VALUES, "blur_sigma": [0.1, 2.0], "canvas": 512})
    settings = fill(augment.AugmentSettings, config)
    assert settings == SETTINGS and hash(settings) == hash(SETTINGS)
    del config.hue
    with pytest.raises(UserError, match="lack hue"):
        fill(augment.AugmentSettings, config)


def test_accelerators_make_the_same_views(batch, monkeypatch):
    """Mapped over an axis each for images, sides and levels; colors in their other formulation."""
    canvas, extent, on_cpu = batch
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    key = jax.random.key(3)
    views = jax.jit(lambda *arguments: whole_views(*arguments))(key, canvas, extent)
    monkeypatch.undo()
    np.testing.assert_allclose(views, on_cpu(key, canvas, extent), atol=2e-5)
