"""DetCo's patches, its three terms at four stages, and the whole objective."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instance_methods import (
    OUT,
    SIDE,
    arguments,
    new_state,
    numpy_info_nce,
    on_all_devices,
    pictures,
    residuals,
    unit,
    use_small_backbone,
)

from mcl_jax import sharding
from mcl_jax.models.heads import pool
from mcl_jax.models.image_encoder import StageEncoder
from mcl_jax.models.layers import Context
from mcl_jax.models.resnet import STAGES
from mcl_jax.objectives import contrast
from mcl_jax.objectives.detco import DetCo, DetCoSettings, Inputs, stage_losses
from mcl_jax.views import augment, jigsaw

IMAGES, QUEUE, TAU, PATCH = 4, 10, 0.2, 16
CONTRAST = contrast.QueueSettings(QUEUE, TAU, norm="sync", norm_group=2)
SHUFFLE = dataclasses.replace(CONTRAST, norm="shuffle")
SETTINGS = DetCoSettings(
    (0.1, 0.4, 0.7, 1.0), 60, patch_size=PATCH, local_area=(0.6, 1.0), shuffle_patches=True
)
PAIRS = {"global": ("global", "global"), "local": ("local", "local"), "cross": ("local", "global")}


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def detco(settings=SETTINGS, contrast_settings=CONTRAST, images=IMAGES, axis_name=None):
    common = arguments(images, axis_name)
    return DetCo(settings=contrast_settings, detco=settings, **common)


@pytest.fixture(scope="module")
def state():
    return new_state(detco())


@pytest.fixture(scope="module")
def inputs():
    return Inputs(
        pictures(2, IMAGES, SIDE, SIDE, 3),
        pictures(2, IMAGES, 9, PATCH, PATCH, 3, seed=1),
        jnp.array([2, 0, 3, 1]),
    )


def test_patches_lie_within_their_cells():
    crop, patch, images = 60, 16, 200
    positions = np.asarray(
        jigsaw.draw_positions(jax.random.key(0), images, crop_size=crop, patch_size=patch)
    )
    assert positions.shape == (images, 9, 2)
    offsets = positions - 20 * np.array([divmod(cell, 3) for cell in range(9)])
    # every offset of a 16 px patch in a 20 px cell occurs, and no other
    assert set(offsets[..., 0].ravel()) == set(offsets[..., 1].ravel()) == set(range(5))
    assert len(np.unique(positions, axis=0)) > 1


def test_patches_are_cut_where_their_positions_say():
    crops = pictures(2, 60, 60, 3)
    positions = jigsaw.draw_positions(jax.random.key(1), 2, crop_size=60, patch_size=16)
    orders = np.asarray(jigsaw.draw_orders(jax.random.key(2), 2))
    cut = jax.jit(lambda positions: jigsaw.cut(crops, positions, 16))
    patches, shuffled = (np.asarray(cut(p)) for p in (positions, jigsaw.reorder(positions, orders)))
    for i in range(2):
        for cell, (top, left) in enumerate(np.asarray(positions[i])):
            expected = np.asarray(crops)[i, top : top + 16, left : left + 16]
            np.testing.assert_array_equal(patches[i, cell], expected)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(9))
    assert orders[0].tolist() != orders[1].tolist()
    for i in range(2):
        np.testing.assert_array_equal(shuffled[i], patches[i, orders[i]])


def test_order_of_patches_is_kept_unless_asked_for(monkeypatch):
    """On a crop whose color says where a pixel is, each patch tells the cell it came from."""
    ramp = jnp.indices((60, 60)).transpose(1, 2, 0)
    crops = jnp.broadcast_to(ramp, (2, 4, 60, 60, 2))  # [V, b, ...]
    asked = []

    def views(key, canvas, extent, settings, *, image_size, strides):
        asked.append((settings.area, image_size, len(strides)))
        return (crops,)

    monkeypatch.setattr(augment, "views", views)

    def cells(shuffle):
        objective = detco(dataclasses.replace(SETTINGS, shuffle_patches=shuffle))
        batch = {"image": jnp.zeros((4, 1)), "extent": jnp.zeros((4, 2))}
        patches = jax.jit(lambda key: objective._patches(key[None], batch))(jax.random.key(0))
        assert patches.shape == (2, 4, 9, PATCH, PATCH, 2)
        row, column = np.moveaxis(np.asarray(patches.mean((3, 4))).astype(int) // 20, -1, 0)
        return 3 * row + column

    assert np.array_equal(cells(False), np.broadcast_to(np.arange(9), (2, 4, 9)))
    shuffled = cells(True)
    assert np.array_equal(np.sort(shuffled), np.broadcast_to(np.arange(9), (2, 4, 9)))
    assert len(np.unique(shuffled.reshape(8, 9), axis=0)) == 8  # each image and side its own
    assert asked == [((0.6, 1.0), 60, 1)] * 2


def random_features(rng, rows):
    return {
        kind: {stage: unit(rng.normal(size=(rows, 3 + i))) for i, stage in enumerate(STAGES)}
        for kind in ("global", "local")
    }


def numpy_terms(u, v, queue):
    return {
        stage: {
            name: numpy_info_nce(u[q][stage], v[k][stage], queue[k][stage], TAU)
            for name, (q, k) in PAIRS.items()
        }
        for stage in STAGES
    }


def test_three_terms_of_every_stage():
    rng = np.random.default_rng(0)
    arrays = [random_features(rng, rows) for rows in (IMAGES, IMAGES, QUEUE)]

    @jax.jit
    def computed(u, v, queue):
        terms = stage_losses(u, v, queue=queue, temperature=TAU)
        return terms, detco()._weigh(terms)

    single = (jax.tree.map(np.float32, tree) for tree in arrays)
    (terms, (total, metrics)), expected = computed(*single), numpy_terms(*arrays)
    weighted = {}
    for stage, weight in zip(STAGES, (0.1, 0.4, 0.7, 1.0), strict=True):
        for name in PAIRS:
            value = float(terms[stage][name][0])
            assert value == pytest.approx(expected[stage][name], rel=1e-5)
        weighted[stage] = weight * sum(expected[stage].values())
    assert float(total) == pytest.approx(sum(weighted.values()), rel=1e-5)
    assert float(metrics["loss/level0"]) == pytest.approx(weighted["res5"], rel=1e-5)
    u, v, queue = ([tree[kind]["res2"] for kind in ("global", "local")] for tree in arrays)
    assert float(metrics["positive/level3"]) == pytest.approx((u[0] * v[0]).sum(1).mean(), abs=1e-5)
    cross = (u[1] @ queue[0].T).mean()
    assert float(metrics["negative_cross/level3"]) == pytest.approx(cross, abs=1e-5)


def by_hand(encoder, images, patches, context):
    """Every patch position on its own through the pooling, then side by side."""
    stages = encoder.backbone(images, context)
    nine = Context((IMAGES * 9,), train=True)
    of_patches = encoder.backbone(patches.reshape(-1, PATCH, PATCH, 3), nine)
    out = {"global": {}, "local": {}}
    for stage in STAGES:
        pooled = pool(of_patches[stage]).reshape(IMAGES, 9, -1)
        joined = jnp.concatenate([pooled[:, j] for j in range(9)], axis=1)
        out["global"][stage] = encoder.global_mlp[stage](stages[stage].mean((1, 2)))
        out["local"][stage] = encoder.local_mlp[stage](joined)
    return out


def test_whole_objective_against_its_networks(state, inputs):
    objective = detco()

    @jax.jit
    def computed(params, target, queue):
        def loss(params, target, queue):
            memory = {"queue": queue, "pointer": jnp.int32(8)}  # 8 + 4 wraps around at 10
            with_target = state.replace(target_params=target, memory=memory)
            return objective.loss(params, with_target, inputs, None)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, target, queue)

    @jax.jit
    def features(state):
        context, mutable = Context((IMAGES,), train=True), {"mutable": ["batch_stats"]}
        apply = partial(objective.encoder.apply, method=by_hand, **mutable)
        online = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        target = {"params": state.target_params, "batch_stats": state.target_batch_stats}
        return [
            apply(variables, inputs.images[side], inputs.patches[side], context)
            for side, variables in enumerate((online, target))
        ]

    (loss, outcome), (to_online, *to_others) = computed(
        state.params, state.target_params, state.memory["queue"]
    )
    (q, stats), (k, target_stats) = features(state)
    q, k = jax.tree.map(unit, q), jax.tree.map(unit, k)
    queue = jax.tree.map(np.asarray, state.memory["queue"])
    terms = numpy_terms(q, k, queue)
    weights = (0.1, 0.4, 0.7, 1.0)
    expected = sum(w * sum(terms[stage].values()) for w, stage in zip(weights, STAGES, strict=True))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for a, b in zip(
        jax.tree.leaves((outcome.batch_stats["encoder"], outcome.target_batch_stats)),
        jax.tree.leaves((stats["batch_stats"], target_stats["batch_stats"])),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for new, old, keys in zip(
        *(jax.tree.leaves(x) for x in (outcome.memory["queue"], queue, k)), strict=True
    ):
        # float32 against the same network in another program
        np.testing.assert_allclose(np.asarray(new)[[8, 9, 0, 1]], keys, atol=1e-5)
        np.testing.assert_array_equal(new[2:8], old[2:8])
    assert int(outcome.memory["pointer"]) == 2
    spread = q["global"]["res5"].std(0).mean()
    assert float(outcome.metrics["std/level0"]) == pytest.approx(spread, rel=1e-4)
    assert all(np.any(x) for x in jax.tree.leaves(to_online) if x.ndim > 1)
    assert not any(np.any(x) for x in jax.tree.leaves(to_others))


def test_keys_cost_no_gradient_memory(state, inputs):
    within, alone, twice = residuals(detco(), state, inputs)
    assert within == alone
    assert twice > 1.5 * alone  # another trained pass would show


def test_state_is_proven_equal_on_all_devices(state):
    objective = detco(contrast_settings=SHUFFLE, images=8, axis_name=sharding.DATA_AXIS)
    queue = jax.tree.map(lambda _: np.zeros((64, OUT), np.float32), state.memory["queue"])
    shapes = Inputs(
        jax.ShapeDtypeStruct((8, 2, 8, SIDE, SIDE, 3), jnp.float32),
        jax.ShapeDtypeStruct((8, 2, 8, 9, PATCH, PATCH, 3), jnp.float32),
        jax.ShapeDtypeStruct((8, 8), jnp.int32),
    )
    longer = state.replace(memory={"queue": queue, "pointer": np.int32(0)})
    traced = jax.eval_shape(on_all_devices(objective), longer, shapes)
    assert jax.tree.structure(traced[1].memory) == jax.tree.structure(longer.memory)


def test_inputs_and_pictures():
    objective = detco()
    batch = {"image": np.zeros((IMAGES, 70, 70, 3), np.uint8), "extent": np.full((IMAGES, 2), 70)}
    shapes = jax.eval_shape(objective.inputs, jnp.uint32(0), jnp.int32(0), batch, jnp.int32(0))
    assert shapes.images.shape == (2, IMAGES, SIDE, SIDE, 3)
    assert shapes.patches.shape == (2, IMAGES, 9, PATCH, PATCH, 3)
    rows = jax.eval_shape(objective.pictures, shapes)
    assert rows["patches of the query"].shape == (IMAGES * 9, PATCH, PATCH, 3)


def test_stage5_is_what_the_backbone_pools(state, inputs):
    encoder = detco().encoder
    assert isinstance(encoder, StageEncoder)
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    features = jax.jit(partial(encoder.apply, method="stage5"))(variables, inputs.images[0])
    assert features.shape == (IMAGES, 8) and len(np.unique(features, axis=0)) == IMAGES
