"""What passes the door and what does not: combinations, unknown keys, whole configurations."""

import math
import random
import re

import jax
import pytest
from settings_values import BASE, OF_TRAINING, changed, inside, outside, refusal, small

from mcl_jax import program, sharding
from mcl_jax.configs import mcl
from mcl_jax.errors import UserError
from mcl_jax.settings import door
from mcl_jax.settings.keys import KEYS

COMBINATIONS = [
    ({"montage.levels": 4, "montage.copies": (1, 1)}, "copies .* 2 entries, montage.levels is 4"),
    ({"loss.level_weights": (1.0,)}, "level_weights .* 1 entries, montage.levels is 4"),
    ({"loss.level_weights": (0.0,) * 4}, "weighs all 4 levels with 0: there is nothing to learn"),
    (
        {"montage.levels": 1, "loss.level_weights": (0.0, 1.0)},
        "weighs all 1 levels with 0",
    ),
    ({"montage.copies": (1, 0, 1, 2)}, "shows no image on level 1; from 1"),
    ({"montage.assembly": "mosaic"}, "montage.levels must be 2, is 4"),
    (
        {"montage.assembly": "copy_paste", "montage.levels": 1, "loss.level_weights": (1.0,)},
        "at least 2 levels, got 1 levels",
    ),
    ({"montage.assembly": "copy_paste", "loss.pyramid": "full"}, "use 'assigned'"),
    ({"montage.assembly": "copy_paste", "method": "supervised"}, "is self-supervised only"),
    ({"model.drop_path": 0.1}, "resnet50 leaves out no branches .*; set it to 0"),
    (
        {"model.backbone": "swin_t", "model.drop_path": 0.1, "method": "byol"},
        "'byol' leaves out no branches",
    ),
    ({"method": "byol", "loss.negatives": "step"}, "takes no negatives from the batch"),
    (
        {"data.group_size": 4, "montage.assembly": "copy_paste"},
        "'copy_paste' works by device; set data.group_size to 0",
    ),
    (
        {"data.group_size": 4, "numerics.bn_devices": 4},
        "numerics.bn_devices works by device; set data.group_size to 0",
    ),
    (
        {"method": "moco", "moco.norm": "shuffle", "numerics.bn_devices": 4},
        "statistics on each device; set numerics.bn_devices to 0",
    ),
    (
        {"method": "moco", "moco.queue_size": 7, "data.batch_size": 8},
        "queue_size 7 is smaller than the batch of 8 images .* at least 8 would",
    ),
    (
        {"method": "detco", "detco.crop_size": 60, "detco.patch_size": 21},
        "patch_size 21 does not fit a cell of 20 px .*; 1 to 20 would",
    ),
    (
        {"method": "detco", "detco.stage_weights": (0.0,) * 4},
        "stage_weights .* are all 0: there is nothing to learn",
    ),
    ({"knn.shrinks": (3,)}, "shrinks holds 3, which does not divide data.image_size 224"),
    ({"probe.levels": ("P3", "P5")}, "must be the end of P2, P3, P4, P5, got P3, P5"),
    ({"probe.level_bounds": ()}, "must be 3 numbers, one between each two"),
    ({"probe.head_groups": 3}, "head_channels 32 is not a multiple of probe.head_groups 3"),
    # nothing to tell an image from
    ({"data.batch_size": 1}, "data.batch_size is 1: .* others of its batch, .*; 2 is the least"),
    (
        {"data.batch_size": 8, "optimizer.micro_batches": 8},
        "micro_batches is 8 with data.batch_size 8: .* none; 4 micro-batches or fewer would do",
    ),
]


@pytest.mark.parametrize("values, message", COMBINATIONS)
def test_keys_that_do_not_go_together_are_refused(values, message):
    assert re.search(message, refusal(values))


@pytest.mark.parametrize(
    "values",
    [
        {"data.batch_size": 8, "optimizer.micro_batches": 8, "loss.negatives": "step"},
        {"data.batch_size": 8, "optimizer.micro_batches": 4},
        {"data.batch_size": 1, "method": "supervised"},
        {"knn.shrinks": (64, 100)},  # smaller than anything that is looked at: left out
        {"method": "byol", "montage.copies": (0,)},  # not read
    ],
)
def test_what_only_looks_alike_passes(values):
    door.check(changed(values))


# Messages that users see for values: key, value, what would be right.


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"optimizer.name": "lamb"},
            "optimizer.name is 'lamb'; it must be one of lars, sgd, adamw",
        ),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 4,294,967,295"),
        ({"seed": 5_000_000_000}, "seed is 5000000000; it must be a whole number from 0 to"),
        ({"log.keep_checkpoints": 0}, "keep_checkpoints is 0; it must be a whole number from 1"),
        ({"log.keep_checkpoints": -1}, "keep_checkpoints is -1; it must be a whole number from 1"),
        ({"data.image_size": 100}, "whole number of px from 32 to .* and a multiple of 32"),
        ({"data.max_unreadable_share": 1.5}, "is 1.5; it must be a finite number from 0 to 1"),
        ({"ema.base": math.nan}, "ema.base is nan; it must be a finite number from 0 to 1"),
        ({"augment.area": (0.5, 0.2)}, "above 0 and at most 1, low <= high"),
        ({"augment.hue": 0.6}, "hue is 0.6; it must be a finite number of turns from 0 to 0.5"),
        ({"augment.blur_prob": (0.2,)}, r"is \(0.2,\); it must be a tuple of 2, each a finite"),
        ({"optimizer.clip_norm": -1.0}, r"at least 0 \(0: no clipping\)"),
        ({"model.backbone": "resnet20"}, "'resnet20'; it must be one of resnet18, resnet34"),
        ({"svm.costs": (1.0, 0.5)}, "each a finite number above 0, each above the one before"),
        ({"svm.stages": ("res6",)}, "1 to 4, each one of res2, res3, res4, res5, no two alike"),
        ({"svm.shots": (0, 1)}, "each a whole number of images from 1 to .*, each above the one"),
        ({"svm.folds": 1}, "svm.folds is 1; it must be a whole number from 2"),
        ({"svm.positive_weight": 0.0}, "svm.positive_weight is 0.0; it must be .* above 0"),
        ({"probe.steps": 0}, "probe.steps is 0; it must be a whole number from 1"),
        ({"probe.image_size": 100}, "probe.image_size is 100; .* a multiple of 32"),
        ({"probe.train_images": -1}, r"probe.train_images is -1; .* from 0 to .* \(0: all\)"),
        ({"probe.scale_jitter": (0.0, 1.0)}, "a tuple of 2, each a finite number above 0"),
        ({"probe.scale_jitter": (1.0, 0.5)}, "a tuple of 2, each a finite .* above 0, low <= high"),
        ({"probe.min_visible": 1.5}, "min_visible is 1.5; it must be a finite number from 0 to 1"),
        ({"linear.lrs": (1.0, 1.0)}, "each a finite number above 0, no two alike"),
        ({"data.dataset": "x" * 200 + "\0"}, r"is 'x+\.\.\.; it must be text, not empty"),
    ],
)
def test_a_refusal_names_key_value_and_range(values, message):
    assert re.search(message, refusal(values))


@pytest.mark.parametrize(
    "key, meant",
    [
        ("optimizer.lr", "optimizer.base_lr"),
        ("optimizer.learning_rate", "optimizer.base_lr"),
        ("optim.base_lr", "optimizer.base_lr"),
        ("lr", "optimizer.base_lr"),
        ("data.batchsize", "data.batch_size"),
        ("batch_size", "data.batch_size"),
        ("temperature", "loss.temperature"),
        ("knn.neighbours", "knn.neighbors"),
        ("log.keep_checkpoint", "log.keep_checkpoints"),
        ("model.arch", "model.backbone"),
        ("Seed", "seed"),
    ],
)
def test_an_unknown_key_gets_the_nearest(key, meant):
    plain = changed({})
    section, _, name = key.rpartition(".")
    (plain.setdefault(section, {}) if section else plain)[name] = 1
    with pytest.raises(UserError, match=rf"^no key {key}; did you mean {meant}\?$"):
        door.check(plain)


def test_other_wrong_shapes_of_a_configuration():
    for wrong, message in (
        ({"data": 3}, "lacks data.dataset|data is a section"),
        ({"data": {}}, "the configuration lacks data.dataset; start from"),
        ({"xyzzy": 1}, "no key xyzzy; configs/base.py lists"),
        ({"dta": {"x": 1}}, "no key dta.x; did you mean a key of the section data"),
        ({"seed": {"x": 1}}, "no key seed.x"),
    ):
        with pytest.raises(UserError, match=message):
            door.check(BASE | wrong)
    for wrong in (None, 3, "config", []):
        with pytest.raises(UserError, match="must return a ConfigDict"):
            door.check(wrong)
    door.check(BASE | {"study": {"seeds": 3, "differs": {"a": {"optimizer": {"lr": 1}}}}})


def test_a_checkpoints_config_is_not_refused_for_its_age():
    old = changed({})
    del old["data"]["group_size"], old["probe"]
    old["data"]["forgotten"] = old["forgotten"] = 1
    old["numerics"] = None
    completed = door.completed(old, BASE)
    assert completed == BASE
    old["data"]["batch_size"] = 8
    assert door.completed(old, BASE)["data"]["batch_size"] == 8
    door.check(completed)


def test_every_paper_row_passes_the_door():
    for words in ("", "byol", "moco", "detco", "supervised,swin_t", "vanilla", "c4", "coco"):
        door.check(mcl.get_config(words))
    for words in ("mosaic", "copy_paste", "authors", "swin_t,loss=d,levels=2", "mask=.5"):
        door.check(mcl.get_config(words))


def test_random_configurations_are_built_or_refused():
    """What passes the door is built, or refused in words: at no value a traceback."""
    rng, mesh = random.Random(1), sharding.make_mesh(jax.devices()[:1])
    config, counts = small(), {"refused at the door": 0, "refused when built": 0, "built": 0}
    trained = [key for key in KEYS if key.partition(".")[0] in ("method", *OF_TRAINING)]
    trained = [key for key in trained if key != "numerics.compute_dtype"]
    for _ in range(400):
        keys = rng.sample(trained, rng.randint(1, 4))
        drawn = {key: rng.choice(inside(KEYS[key]) * 3 + outside(KEYS[key])[:1]) for key in keys}
        try:
            values = changed({"method": rng.choice(KEYS["method"].listed())} | drawn, config)
            door.check(values)
        except UserError as error:
            assert "\n" not in str(error)
            counts["refused at the door"] += 1
            continue
        if values["model"]["backbone"] not in ("resnet10", "swin_tiny"):
            values["model"]["backbone"] = "resnet10"  # the others take seconds to trace
        if counts["built"] + counts["refused when built"] >= 16:
            continue
        try:
            program.build(values, mesh, images=64)
            counts["built"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            counts["refused when built"] += 1
    print(dict(counts))
    assert counts["refused at the door"] >= 100 and counts["built"] >= 8, counts
