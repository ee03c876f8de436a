"""Micro-batches and groups: what a batch in pieces has in common with a batch in one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from stand_in_backbone import use_stand_in_backbone
from untrained_states import untrained_state

from mcl_jax import accumulation, losses, optimizer, program, sharding
from mcl_jax.bench.parity import widened
from mcl_jax.configs import base, one_gpu
from mcl_jax.errors import UserError
from mcl_jax.objectives.build import make_objective
from mcl_jax.objectives.mcl import MCL
from mcl_jax.settings.records import fill

DEVICES, MICRO, B = 2, 2, 16
SIDE = 32


def small(**loss):
    config = tiny_config()
    config.data.batch_size, config.data.image_size, config.data.canvas_size = B, SIDE, SIDE
    config.model.head_convs, config.montage.levels = 1, 2
    config.optimizer.micro_batches = MICRO
    config.loss.update(loss)
    return config


class Unaugmented(MCL):
    """Views are the images themselves, which compiles much faster."""

    def make_views(self, keys, batch, settings, image_size, strides):
        images = batch["image"] / 255.0
        images = jnp.broadcast_to(images, (2, *images.shape))
        return tuple(images[:, :, ::stride, ::stride] for stride in strides)


def batch_of(rng, images):
    return {
        "image": rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8),
        "extent": np.full((images, 2), SIDE, np.int32),
        "label": rng.integers(0, 8, images).astype(np.int32),
    }


def on_devices(run, body, state, batch):
    """body(state, batch, seed) on every device, everything it returns averaged."""
    mean = lambda *arguments: (jax.lax.pmean(body(*arguments), sharding.DATA_AXIS), jnp.zeros(()))  # noqa: E731
    fields = {name: batch[name] for name in run.objective.batch_fields}
    return jax.jit(sharding.per_device(mean, run.mesh))(state, fields, np.uint32(0))[0]


def in_one_piece(run, params, state, batch, seed, micro):
    """The definition: every micro-batch's features, the loss of all (or the mean of their losses)."""
    objective, device = run.objective, jax.lax.axis_index(sharding.DATA_AXIS)
    b = objective.images_per_device
    predictions, targets, labels, single = [], [], [], []
    for i in range(MICRO):
        part = {name: x[i * b : (i + 1) * b] for name, x in batch.items()}
        inputs = objective.inputs(seed, state.step, part, device * MICRO + i)
        u, _ = objective.predict(params, state, inputs)
        v, _ = objective.targets(state, inputs, sharding.DATA_AXIS)
        own_labels = objective.labels(inputs, sharding.DATA_AXIS)
        single.append(objective.contrast(u, v, own_labels)[0])
        predictions.append(u)
        targets.append(v)
        labels.append([x + i * b * DEVICES for x in own_labels])
    if micro:
        return sum(single) / MICRO
    join = lambda parts: [jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True)]  # noqa: E731
    targets = [t[0] for t in targets]  # mode a reads level 0 alone
    total = 0.0
    for s, (u, own_labels) in enumerate(zip(join(predictions), join(labels), strict=True)):
        for side in range(2):
            v = jnp.concatenate([t[1 - side] for t in targets])
            loss, _ = losses.scaled_info_nce(
                u[side], v, labels=own_labels[side], temperature=objective.loss_settings.temperature
            )
            total += objective.loss_settings.level_weights[s] * loss
    return total


@pytest.mark.parametrize("negatives", ["micro_batch", "step"])
def test_micro_batches_give_the_loss_and_gradients_of_their_definition(negatives, monkeypatch):
    use_stand_in_backbone(monkeypatch)
    with jax.enable_x64(True):
        config = small(negatives=negatives)
        config.model.neck = "c4"
        config.numerics.compute_dtype = "float64"
        mesh = sharding.make_mesh(jax.devices()[:DEVICES])
        run = program.build(config, mesh, images=64)
        run = replace(run, objective=Unaugmented(**vars(run.objective)))
        assert run.objective.images_per_device == B // DEVICES // MICRO
        state = widened(untrained_state(run))

        def body(state, batch, seed):
            params = sharding.device_local(state.params, sharding.DATA_AXIS)
            (loss, outcome), grads = accumulation.value_and_grad(
                params, state, batch=batch, seed=seed, run=run
            )
            expected = jax.value_and_grad(
                lambda p: in_one_piece(
                    run, p, state=state, batch=batch, seed=seed, micro=negatives == "micro_batch"
                )
            )(params)
            return (loss, grads), expected, outcome.metrics, outcome.batch_stats

        batch = batch_of(np.random.default_rng(0), B)
        mine, expected, metrics, stats = on_devices(run, body, state=state, batch=batch)
    assert float(mine[0]) == pytest.approx(float(expected[0]), rel=1e-13)
    assert float(metrics["loss/level0"] + metrics["loss/level1"]) == pytest.approx(float(mine[0]))
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(mine[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * largest)
    moved = jax.tree.map(lambda old, new: not np.array_equal(old, new), state.batch_stats, stats)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("method", ["mcl", "byol", "detco"])
def test_groups_and_not_devices_decide_about_views_and_montages(method):
    """One shard with two groups of 4 makes what two shards of 4 make."""
    config = small()
    config.method = method
    config.detco.crop_size, config.detco.patch_size = 24, 8
    config.moco.queue_size = 64
    config.data.group_size = 4
    one, two = (make_objective(config, images, norm_axis=None) for images in (8, 4))
    batch = batch_of(np.random.default_rng(1), 8)
    make = lambda objective: jax.jit(  # noqa: E731
        lambda rows, shard: objective.inputs(np.uint32(3), 5, rows, shard)
    )
    fields = {name: batch[name] for name in one.batch_fields}
    together, half = make(one)(fields, 1), make(two)
    apart = [
        half({name: x[4 * i : 4 * i + 4] for name, x in fields.items()}, 2 + i) for i in range(2)
    ]
    if method == "mcl":
        n0 = two.counts[0]  # level 0's canvases come first on every side
        canvases = [np.asarray(x.canvases).reshape(2, -1, SIDE, SIDE, 3) for x in apart]
        expected = np.concatenate(
            [x[:, :n0] for x in canvases] + [x[:, n0:] for x in canvases], axis=1
        )
        np.testing.assert_array_equal(
            np.asarray(together.canvases).reshape(expected.shape), expected
        )
        numbers = np.concatenate([x.labels[1] + 4 * i for i, x in enumerate(apart)], axis=1)
        np.testing.assert_array_equal(together.labels[1], numbers)
        return
    for name in {"byol": ["images"], "detco": ["images", "patches"]}[method]:
        of_sides = [np.asarray(getattr(x, name)) for x in apart]
        if method == "byol":
            of_sides = [x.reshape(2, 4, *x.shape[1:]) for x in of_sides]
        expected = np.concatenate(of_sides, axis=1)
        np.testing.assert_array_equal(
            np.asarray(getattr(together, name)).reshape(expected.shape), expected
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.group_size": 3}, "group_size 3 does not divide the 8"),
        ({"optimizer.micro_batches": 3}, "divide over 1 devices x 3 micro-batches; 15 would"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    config = small()
    config.update_from_flattened_dict(change)
    mesh = sharding.make_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match=message):
        program.build(config, mesh, images=64)


def test_one_gpu_is_the_main_run_with_its_rates_scaled():
    main, one = base.get_config(), one_gpu.get_config()
    assert one.data.batch_size * 16 == main.data.batch_size
    assert one.ema.base**16 == pytest.approx(main.ema.base)
    images = 1_281_167
    peaks = []
    for config in (main, one):
        steps = images // config.data.batch_size
        warmup = round(config.optimizer.warmup_epochs * steps)
        schedule = optimizer.learning_rate(
            fill(optimizer.OptimizerSettings, config.optimizer), config.data.batch_size, steps
        )
        peaks.append(float(schedule(warmup)))
    assert peaks == pytest.approx([16.0, 1.0], rel=1e-3)
