"""Every row of configs/README.md builds and trains two finite steps on eight devices.

A row's own structure is kept (method, levels, matching, assembly, neck, optimizer, schedule); sizes
shrink to the smallest that still have all parts. Rows that differ in numbers alone share their
programs, which take the numbers as arguments. The first row trains MCL's ResNet; rows that only change
what is done with its maps (`loss=b`, `copy_paste`) have a backbone of four convolutions.
"""

import functools
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shrink_networks
from stand_in_backbone import use_stand_in_backbone
from untrained_states import untrained_state

from mcl_jax import optimizer as optimizers
from mcl_jax import program, sharding
from mcl_jax.configs import mcl
from mcl_jax.errors import UserError
from mcl_jax.objectives.build import make_objective
from mcl_jax.objectives.mcl import MCL
from mcl_jax.settings.records import fill
from mcl_jax.train_step import apply_gradients

README = Path(mcl.__file__).with_name("README.md")
ROWS = re.findall(r"^\| `([^`]*)` \|", README.read_text().replace("| `` |", "| ` ` |"), re.M)
IMAGES = 32


def small(variant):
    config = mcl.get_config(variant.strip())
    shrink_networks(config)
    config.data.batch_size = IMAGES
    config.data.image_size = config.data.canvas_size = 32
    config.model.head_convs = min(1, config.model.head_convs)
    config.supervised.classes = 8
    config.moco.queue_size = 48
    config.detco.crop_size, config.detco.patch_size = 36, 8
    return program.plain_config(config)


def test_the_table_lists_what_the_issue_of_a_paper_row_needs():
    assert len(ROWS) == len(set(ROWS)) >= 30
    words = {word for row in ROWS for word in row.split(",") if "=" not in word} - {" "}
    assert words == set(mcl.WORDS)
    text = README.read_text()
    for number in ("42.5 / 38.2", "41.8 / 37.7", "40.0 / 34.7", "44.7 / 40.3"):
        assert number in text


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_valid_at_its_own_size(row):
    """As on a pod of 32 devices; networks are built lazily, so this costs nothing."""
    config = program.plain_config(mcl.get_config(row.strip()))
    objective = make_objective(
        config, config["data"]["batch_size"] // 32, norm_axis=sharding.DATA_AXIS
    )
    assert objective.images_per_device * 32 == config["data"]["batch_size"]


def without_numbers(objective):
    """(the objective without the numbers that a program can take as arguments, these numbers)."""
    if not isinstance(objective, MCL):
        return objective, ()
    settings = objective.loss_settings
    bare = replace(objective, loss_settings=replace(settings, level_weights=()))
    return bare, settings.level_weights


def with_numbers(bare, weights):
    """The inverse of `without_numbers`; the weights may be traced."""
    if not weights:
        return bare
    return replace(bare, loss_settings=replace(bare.loss_settings, level_weights=weights))


programs = {}


def compiled(function, *arguments):
    """The compiled jitted function; rows that lower to the same program share it."""
    lowered = function.lower(*arguments)
    key = (lowered.as_text(), lowered.out_tree)
    if key not in programs:
        programs[key] = lowered.compile()
    return programs[key]


def inputs_of(objective, mesh):
    """(step, batch, seed) -> inputs on all devices, every leaf with an axis of devices in front.

    A program of its own: what a loss compares does not change the views.
    """

    def body(step, batch, seed):
        inputs = objective.inputs(seed, step, batch, jax.lax.axis_index(sharding.DATA_AXIS))
        return jax.tree.map(lambda x: x[None], inputs)

    batched, whole = sharding.BATCH_SPEC, sharding.STATE_SPEC
    specs = (whole, batched, whole)
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=batched))


@functools.cache
def gradient_step(bare, mesh):
    """(state, inputs, numbers) -> (gradients, outcome, loss) on all devices, traced once a loss."""

    def body(state, inputs, weights):
        objective = with_numbers(bare, weights)
        inputs = jax.tree.map(lambda x: x[0], inputs)
        params = sharding.device_local(state.params, sharding.DATA_AXIS)
        loss_fn = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, outcome), grads = loss_fn(params, state, inputs, sharding.DATA_AXIS)
        grads, loss, metrics = jax.lax.pmean((grads, loss, outcome.metrics), sharding.DATA_AXIS)
        return (grads, outcome._replace(metrics=metrics)), loss

    return jax.jit(sharding.per_device(body, mesh))


update_steps = {}


def update(run, state, grads, outcome):
    """apply_gradients, compiled once for all rows with the same networks and kind of optimizer."""
    settings = fill(optimizers.OptimizerSettings, run.config["optimizer"])
    numbers = dict.fromkeys(("base_lr", "final_lr", "epochs", "warmup_epochs", "weight_decay"), 0.0)
    kind = replace(settings, **numbers, warmup_shape="")

    def step(state, grads, outcome, lr, ema, weight_decay):
        own = replace(settings, weight_decay=weight_decay)
        optimizer = optimizers.create(own, state.params, lambda _: lr)
        like = replace(run, optimizer=optimizer, lr=lambda _: lr, ema=lambda _: ema)
        return apply_gradients(state, grads, outcome=outcome, run=like)

    leaves = jax.tree_util.tree_leaves_with_path(state)
    key = str(([(path, x.shape, x.dtype) for path, x in leaves], kind))
    compiled = update_steps.setdefault(key, jax.jit(step))
    k = jnp.asarray(state.step)
    return compiled(state, grads, outcome, run.lr(k), run.ema(k), settings.weight_decay)


# Rows with networks of their own; the first is MCL's.
OWN_NETWORKS = (
    " ",
    "c4",
    "swin_t",
    "supervised,swin_t",
    "vanilla,swin_t",
    "vanilla",
    "byol",
    "moco",
    "detco",
)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_two_finite_steps_on_eight_devices(row, monkeypatch):
    if row not in OWN_NETWORKS:
        use_stand_in_backbone(monkeypatch)
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    run = program.build(small(row), mesh, images=64)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8),
        "extent": np.full((IMAGES, 2), 32, np.int32),
        "label": rng.integers(0, 8, IMAGES).astype(np.int32),
    }
    batch = sharding.put_batch({k: batch[k] for k in run.objective.batch_fields}, mesh)
    state = untrained_state(run)
    before = state.params
    bare, weights = without_numbers(run.objective)
    seed = program.seed_argument(run)
    views = compiled(inputs_of(run.objective, mesh), state.step, batch, seed)
    for k in range(2):
        inputs = views(state.step, batch, seed)
        if k == 0:
            step = compiled(gradient_step(bare, mesh), state, inputs, weights)
        results = step(state, inputs, weights)
        (grads, outcome), loss = jax.device_get(results)  # as numpy: one update step fits all rows
        results = update(run, state, grads, outcome._replace(metrics={}))
        state, metrics = jax.device_get(results)
        metrics = metrics | outcome.metrics | {"loss": loss}
        assert all(np.isfinite(float(value)) for value in metrics.values()), metrics
        assert int(state.step) == k + 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    after = jax.tree.leaves(state.params)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before), after, strict=True):
        keys = [key.key for key in path]
        # levels that a row does not read stay as they were, and without FPN the norms before it
        output_norm = keys[2:-1] in (["norm2"], ["norm3"], ["norm4"])
        idle = "fpn" in keys or (row == "vanilla,swin_t" and output_norm)
        if not idle:
            assert (x != y).any(), path


@pytest.mark.parametrize(
    "variant, message",
    [
        ("c5", "unknown word 'c5'.*byol.*loss="),
        ("lost=b", "unknown key 'lost'.*loss"),
        ("levels=x", "levels=x.*invalid literal"),
        ("weights=none", "weights=none.*released, text"),
        ("byol,moco", "byol and moco are both methods"),
        ("byol,loss=d", "byol has no 'loss'; it combines with swin_t"),
        ("vanilla,mosaic", "vanilla has no 'mosaic'"),
        ("copy_paste,mask=.5", "no boundary mask"),
    ],
)
def test_a_wrong_argument_says_what_there_is(variant, message):
    with pytest.raises(UserError, match=message):
        mcl.get_config(variant)


def test_words_combine_in_any_order():
    one, other = (
        mcl.get_config("swin_t,supervised,wd=.1"),
        mcl.get_config("supervised,swin_t,wd=.1"),
    )
    assert one.to_dict() == other.to_dict()
    assert (one.optimizer.name, one.optimizer.weight_decay) == ("adamw", 0.1)
    assert mcl.get_config("c4,loss=b,levels=3").montage.levels == 3
