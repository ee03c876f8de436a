"""InfoNCE with a queue, shuffled normalization, and MoCo as a whole."""

import dataclasses

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
from jax.sharding import PartitionSpec as P

from mcl_jax import sharding
from mcl_jax.errors import UserError
from mcl_jax.models.layers import Context
from mcl_jax.objectives import contrast
from mcl_jax.objectives.moco import Inputs, MoCo, draw_order

IMAGES, QUEUE, TAU = 8, 24, 0.2
SYNC = contrast.QueueSettings(QUEUE, TAU, norm="sync", norm_group=2)
SHUFFLE = contrast.QueueSettings(QUEUE, TAU, norm="shuffle", norm_group=2)
AXIS = sharding.DATA_AXIS


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def moco(settings=SYNC, images=IMAGES, axis_name=None):
    return MoCo(settings=settings, **arguments(images, axis_name))


@pytest.fixture(scope="module")
def state():
    return new_state(moco())


@pytest.fixture(scope="module")
def inputs():
    order = np.random.default_rng(3).permutation(IMAGES).astype(np.int32)
    return Inputs(pictures(2, IMAGES, SIDE, SIDE, 3), jnp.asarray(order))


def test_loss_is_cross_entropy_with_label_0_and_trains_queries_alone():
    rng = np.random.default_rng(0)
    q, k, queue = (unit(rng.normal(size=(n, 5))) for n in (IMAGES, IMAGES, QUEUE))
    grad = jax.jit(
        jax.value_and_grad(lambda *x: contrast.info_nce(*x, TAU), argnums=(0, 1, 2), has_aux=True)
    )
    arrays = (x.astype(np.float32) for x in (q, k, queue))
    (loss, metrics), (to_queries, to_keys, to_queue) = grad(*arrays)
    assert float(loss) == pytest.approx(numpy_info_nce(q, k, queue, TAU), rel=1e-6)
    positives, negatives = (q * k).sum(1), q @ queue.T
    assert float(metrics["positive"]) == pytest.approx(positives.mean(), abs=1e-6)
    assert float(metrics["negative"]) == pytest.approx(negatives.mean(), abs=1e-6)
    assert float(metrics["top1"]) == np.mean(positives > negatives.max(1))
    assert np.any(to_queries) and not np.any(to_keys) and not np.any(to_queue)


def encoded(objective, params, stats, images, groups):
    variables = {"params": params, "batch_stats": stats}
    y, new = objective.encoder.apply(
        variables, images, Context(groups, train=True), mutable=["batch_stats"]
    )
    return y, new["batch_stats"]


def check(objective, state, inputs, groups, order, loss, outcome):
    """A computed loss and outcome against numpy on the networks' own outputs."""

    @jax.jit
    def features(state):
        online = (state.params["encoder"], state.batch_stats["encoder"])
        target = (state.target_params, state.target_batch_stats)
        q = encoded(objective, *online, inputs.images[0], groups)
        return q, encoded(objective, *target, inputs.images[1][order], groups)

    (q, stats), (k, target_stats) = features(state)
    q, k, queue = unit(q), unit(k)[np.argsort(order)], np.asarray(state.memory["queue"])
    assert float(loss) == pytest.approx(numpy_info_nce(q, k, queue, TAU), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves((outcome.batch_stats, outcome.target_batch_stats)),
        jax.tree.leaves(({"encoder": stats}, target_stats)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # float32 against the same network in another program
    np.testing.assert_allclose(outcome.memory["queue"][:IMAGES], k, atol=1e-5)
    np.testing.assert_array_equal(outcome.memory["queue"][IMAGES:], queue[IMAGES:])
    assert int(outcome.memory["pointer"]) == IMAGES
    return q


def test_whole_objective_shuffled_on_one_device(state, inputs):
    objective = moco(SHUFFLE)

    @jax.jit
    def computed(params, target, queue):
        def loss(params, target, queue):
            memory = state.memory | {"queue": queue}
            with_target = state.replace(target_params=target, memory=memory)
            return objective.loss(params, with_target, inputs, None)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, target, queue)

    (loss, outcome), (to_online, *to_others) = computed(
        state.params, state.target_params, state.memory["queue"]
    )
    q = check(
        objective,
        state,
        inputs=inputs,
        groups=(2, 2, 2, 2),
        order=np.asarray(inputs.order),
        loss=loss,
        outcome=outcome,
    )
    assert float(outcome.metrics["std/level0"]) == pytest.approx(q.std(0).mean(), rel=1e-4)
    assert all(np.any(x) for x in jax.tree.leaves(to_online) if x.ndim > 1)
    assert not any(np.any(x) for x in jax.tree.leaves(to_others))


def test_whole_objective_synchronized_on_eight_devices(state, inputs):
    eight = on_all_devices(moco(SYNC, images=1, axis_name=AXIS))
    split = Inputs(inputs.images.swapaxes(0, 1)[:, :, None], jnp.zeros((8, 1), jnp.int32))
    loss, outcome = jax.jit(eight)(state, split)
    check(
        moco(SYNC),
        state,
        inputs=inputs,
        groups=(IMAGES,),
        order=np.arange(IMAGES),
        loss=loss,
        outcome=outcome,
    )


def test_shuffling_changes_a_keys_company_not_its_place(state, inputs):
    objective = moco(SHUFFLE)
    keys = jax.jit(lambda order: objective.keys(state, inputs._replace(order=order), None)[0])
    in_order, shuffled = keys(jnp.arange(IMAGES)), keys(inputs.order)
    assert np.abs(in_order - shuffled).max() > 0.01  # other statistics
    within = np.arange(IMAGES).reshape(-1, 2)[::-1].ravel()  # whole groups change places
    np.testing.assert_allclose(keys(jnp.asarray(within)), in_order, atol=1e-6)


def test_keys_cost_no_gradient_memory(state, inputs):
    within, alone, twice = residuals(moco(), state, inputs)
    assert within == alone
    assert twice > 1.5 * alone  # another trained pass would show


def dealt(settings, rows, order):
    """What `contrast.encode_keys` makes of rows [8 * b, C] on eight devices with a mean per group."""

    def encode(batch, context):
        means = batch.reshape(len(context.norm_groups), -1, batch.shape[-1]).mean(1)
        return {"rows": batch, "means": means.repeat(context.norm_groups[0], 0)}, {}

    def body(rows, order):
        return contrast.encode_keys(encode, rows, order=order, settings=settings, axis_name=AXIS)[0]

    split = P(AXIS)
    mapped = jax.shard_map(
        body, mesh=sharding.make_mesh(), in_specs=(split, split), out_specs=split
    )
    return jax.jit(mapped)(rows, order)


def test_every_group_holds_images_of_all_devices_and_keys_come_back():
    images, devices, group = 16, 8, 8
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(images) for _ in range(devices)])
    device = np.repeat(np.eye(devices), images, axis=0)
    number = rng.normal(size=(devices * images, 3))
    rows = np.concatenate([device, number], axis=1).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:, :devices] = device  # encode_keys scales rows; only directions are compared
    features = dealt(dataclasses.replace(SHUFFLE, norm_group=group), rows, order.astype(np.int32))
    np.testing.assert_allclose(features["rows"], unit(rows), atol=1e-6)
    share = np.asarray(features["means"])[:, :devices]  # all equal: one image of each device
    np.testing.assert_allclose(share, share[:, :1].repeat(devices, 1), rtol=1e-6)
    assert share.min() > 0


@pytest.mark.parametrize("settings", [SYNC, SHUFFLE], ids=["sync", "shuffle"])
def test_state_is_proven_equal_on_all_devices(settings, state, monkeypatch):
    objective = moco(settings, axis_name=AXIS)
    longer = {"queue": np.zeros((64, OUT), np.float32), "pointer": np.int32(0)}
    state = state.replace(memory=longer)  # eight devices make 64 keys
    shapes = Inputs(
        jax.ShapeDtypeStruct((8, 2, IMAGES, SIDE, SIDE, 3), jnp.float32),
        jax.ShapeDtypeStruct((8, IMAGES), jnp.int32),
    )
    jax.eval_shape(on_all_devices(objective), state, shapes)  # shard_map's check passes
    if settings is SHUFFLE:  # and would not without the mean over devices
        monkeypatch.setattr(contrast, "synchronize", lambda stats, *_: stats)
        with pytest.raises(ValueError, match="shard_map"):
            jax.eval_shape(on_all_devices(objective), state, shapes)


def test_inputs_draw_an_order_per_step_and_device():
    objective = moco()
    batch = {
        "image": np.zeros((IMAGES, 40, 40, 3), np.uint8),
        "extent": np.full((IMAGES, 2), 40),
    }
    shapes = jax.eval_shape(objective.inputs, jnp.uint32(0), jnp.int32(0), batch, jnp.int32(0))
    assert shapes.images.shape == (2, IMAGES, SIDE, SIDE, 3) and shapes.order.shape == (IMAGES,)
    draw = jax.jit(draw_order, static_argnums=3)
    orders = [draw(0, step, device, IMAGES) for step, device in [(0, 0), (0, 1), (1, 0)]]
    assert all(sorted(order.tolist()) == list(range(IMAGES)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    np.testing.assert_array_equal(orders[0], draw(0, 0, 0, IMAGES))


def test_a_new_run():
    variables = jax.jit(moco().init)(jax.random.key(0))
    assert variables.params.keys() == variables.batch_stats.keys() == {"encoder"}
    memory = variables.memory
    assert memory["queue"].shape == (QUEUE, OUT) and memory["queue"].dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(memory["queue"], axis=1), 1, atol=1e-6)
    assert int(memory["pointer"]) == 0


@pytest.mark.parametrize(
    ("values", "images", "message"),
    [
        ({"norm": "shuffle", "norm_group": 5}, 8, "norm_group 5 does not divide the 8 .*; 4 would"),
        ({"norm": "shuffle", "norm_group": 32}, 8, "norm_group 32 does not divide .*; 8 would"),
    ],
)
def test_settings_that_cannot_work(values, images, message):
    with pytest.raises(UserError, match=message):
        moco(dataclasses.replace(SYNC, **values), images=images)


def test_what_only_the_devices_show(state, inputs):
    one_group = moco(contrast.QueueSettings(QUEUE, TAU, norm="shuffle", norm_group=IMAGES))
    with pytest.raises(UserError, match="norm_group 8 is the whole batch.*; 4 would"):
        one_group.loss(state.params, state, inputs, None)

    def on_eight(settings, images):
        arrays = (np.zeros((8 * images, 4), np.float32), np.zeros(8 * images, np.int32))
        return dealt(settings, *arrays)

    with pytest.raises(UserError, match="device's 6 images to each of 8 devices; 8 images"):
        on_eight(SHUFFLE, 6)
