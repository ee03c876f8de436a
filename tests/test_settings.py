"""The one door: every key's range, unknown keys, combinations, and the table against base.py."""

import ast
import inspect
import math
import random
import re
import time

import jax
import numpy as np
import pytest
from conftest import tiny_config

from mcl_jax import montage, program, sharding
from mcl_jax.configs import base, mcl
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.settings import door, effects
from mcl_jax.settings.keys import KEYS, SECTIONS
from mcl_jax.settings.records import fill
from mcl_jax.settings.rules import LARGEST_COUNT, Interval
from mcl_jax.views import augment

BASE = door.as_dict(base.get_config())
VALUES = dict(door.flattened(BASE))


def changed(values, config=None):
    """Nested dicts with 'section.key' set, whatever the type."""
    plain = door.as_dict(base.get_config() if config is None else config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (plain[section] if section else plain)[name] = value
    return plain


def refusal(values, config=None):
    with pytest.raises(UserError) as caught:
        door.check(changed(values, config))
    message = str(caught.value)
    assert "\n" not in message
    return message


# What a rule refuses and what it allows, at its very ends.


def ends(rule):
    """(allowed, refused) single numbers at the ends of an interval."""
    allowed, refused = [], []
    low, high = rule.interval.low, rule.interval.high
    step = rule.multiple if rule.kind is int else None
    for end, is_open, away in (
        (low, rule.interval.low_open, -1),
        (high, rule.interval.high_open, 1),
    ):
        if math.isinf(end):
            if rule.kind is int and away > 0:
                refused.append(LARGEST_COUNT + 1)
            continue
        if step:
            allowed.append(int(end))
            refused.append(int(end) + away * step)
            if step > 1:
                refused.append(int(end) + 1)
        else:
            beyond = float(np.nextafter(end, away * math.inf))
            inside = float(np.nextafter(end, -away * math.inf))
            allowed.append(inside if is_open else end)
            refused.append(end if is_open else beyond)
    return allowed, refused


def outside(rule):
    """Values that a key must not take: just outside its range, and of other types."""
    others = [None, object(), {}, b"text", "none of these"]
    if rule.kind is str:
        one = [3, 1.5, True, *others[:4]]
        one += ["none of these"] if rule.choices is not None else ["a\0b"]
        one += [] if rule.empty and rule.choices is None else ["", "  "]
    elif rule.kind is bool:
        one = [0, 1, 1.0, "True", *others]
    else:
        one = [*ends(rule)[1], math.nan, math.inf, -math.inf, True, "3", *others]
        one += [1.5, float(ends(rule)[0][0])] if rule.kind is int else []
    if rule.length is None:
        return [*one, (BASE,), [], ()]
    fewest, most = rule.length
    good = inside(rule)[0]
    filler = list(good)[:1] or [2]
    wrong = [filler * (most + 1), *([filler * (fewest - 1)] if fewest else [])]
    wrong += [[x, *good[1:]] for x in one]
    wrong += [good[0]] if good else [3]
    if rule.order in ("rising", "range") and len(good) > 1:
        wrong.append((2 * good[0] + 0.5, *good[1:-1], good[0]))
    if rule.order in ("rising", "distinct") and good:
        wrong.append((good[0],) * 2)
    return [*wrong, *others]


def inside(rule):
    """Values at the ends of what a key may hold."""
    if rule.kind is bool:
        return [True, False]
    if rule.kind is str:
        texts = list(rule.listed()) or ["x", *([""] if rule.empty else [])]
        return texts if rule.length is None else [tuple(texts)]
    numbers = ends(rule)[0]
    if rule.length is None:
        return numbers
    fewest, most = rule.length
    low = numbers[0]
    if rule.order in ("rising", "distinct"):
        entries = [low + i for i in range(min(most, 4))]
    else:
        entries = [low] * (min(most, 4) - 1) + [numbers[-1]]
    return [tuple(entries), *([tuple(entries[:fewest])] if 0 < fewest < len(entries) else [])]


@pytest.mark.parametrize("key", KEYS)
def test_what_is_just_outside_a_range_is_refused_in_one_line(key):
    values = outside(KEYS[key])
    assert len(values) >= 8
    for value in values:
        message = refusal({key: value})
        assert message.startswith(key) and "must be" in message or "section" in message, value
        assert re.fullmatch(rf"{re.escape(key)} is .*; it must be .+", message) or value == {}


@pytest.mark.parametrize("key", KEYS)
def test_the_ends_of_a_range_pass(key):
    for value in inside(KEYS[key]):
        assert KEYS[key].allows(value), value
        assert KEYS[key].allows(list(value) if isinstance(value, tuple) else value)


# What other keys have to be, for a run at the end of a key's range to be built.
NEEDS = {
    "method": {"moco.queue_size": 64},
    "data.batch_size": {"method": "byol"},
    "model.drop_path": {"model.backbone": "swin_tiny", "model.width": 8},
    "montage.copies": {"method": "byol"},
    "loss.level_weights": {"method": "byol"},
    "supervised.classes": {"method": "supervised"},
    "supervised.pooling": {"method": "supervised"},
    "supervised.label_smoothing": {"method": "supervised"},
    "moco.queue_size": {"method": "moco", "data.batch_size": 1, "moco.norm_group": 1},
    "moco.temperature": {"method": "moco", "moco.queue_size": 64},
    "moco.norm": {"method": "moco", "moco.queue_size": 64},
    "moco.norm_group": {"method": "moco", "moco.queue_size": 64, "moco.norm": "shuffle"},
    "detco.stage_weights": {"method": "moco", "moco.queue_size": 64},
    "detco.crop_size": {"method": "detco", "moco.queue_size": 64, "detco.patch_size": 1},
    "detco.patch_size": {"method": "detco", "moco.queue_size": 64},
    "detco.local_area": {"method": "detco", "moco.queue_size": 64},
    "detco.shuffle_patches": {"method": "detco", "moco.queue_size": 64},
    "probe.head_groups": {"probe.head_channels": 1},
    "probe.head_channels": {"probe.head_groups": 1},
    "probe.levels": {"probe.level_bounds": (12.0, 24.0, 48.0)},
    "probe.level_bounds": {"probe.levels": ("P2", "P3", "P4", "P5")},
}
OF_TRAINING = SECTIONS[: SECTIONS.index("knn")]


def small():
    config = tiny_config()
    config.data.image_size = config.data.canvas_size = 32
    config.knn.shrinks = ()
    config.model.head_convs = 1
    return config


def runs_at_the_ends(section):
    """Changes of `small()`: one key where it needs others, else all keys of a section in turns."""
    together = []
    for key in KEYS:
        if key.rpartition(".")[0] != section or key in ("model.backbone", "numerics.compute_dtype"):
            continue  # the tests of models and paper rows build all of those
        values = [value for value in inside(KEYS[key]) if (key, value) not in SKIPPED]
        for number, value in enumerate(values):
            if key in NEEDS:
                yield NEEDS[key] | {key: value}
            else:
                together += [{}] * (number + 1 - len(together))
                together[number] = together[number] | {key: value}
    yield from together


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_a_run_is_built_at_the_ends_of_every_range(section):
    mesh = sharding.make_mesh(jax.devices()[:1])
    for values in runs_at_the_ends(section):
        config = changed(values, small())
        door.check(config)
        if section in ("", *OF_TRAINING):
            assert program.build(config, mesh, images=64).total_steps >= 1


# Ends that only work together with many other keys; `COMBINATIONS` refuses them by themselves.
SKIPPED = {
    ("montage.assembly", "mosaic"),
    ("montage.assembly", "copy_paste"),
    ("detco.stage_weights", (0.0, 0.0, 0.0, 0.0)),
}

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
        "micro_batches is 8 with data.batch_size 8: .* set loss.negatives to 'step'",
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


# The table and configs/base.py.


def comments():
    """Key -> configs/base.py's words for it: the comment lines above, and the one behind."""
    found, above, local = {}, [], {"config": ""}
    for line in inspect.getsource(base.get_config).splitlines():
        code, _, comment = line.strip().partition("#")
        if not code.strip():
            above.append(comment.strip())
            continue
        if match := re.match(r"(\w+)\.(\w+) = ", code.strip()):
            section = local[match[1]]
            found[f"{section}{match[2]}"] = " ".join([*above, comment.strip()])
        if match := re.match(r"(\w+) = config\.(\w+) = ", code.strip()):
            local[match[1]] = f"{match[2]}."
        above = []
    return found


def test_the_table_and_base_name_the_same_keys_in_the_same_order():
    assert list(KEYS) == list(comments()) and set(KEYS) == set(VALUES)
    for key, rule in KEYS.items():
        assert rule.allows(VALUES[key]), key
        kinds = {type(x) for x in np.atleast_1d(np.array(VALUES[key], object)).tolist()}
        assert kinds <= {rule.kind}, key
        assert rule.changes in vars(effects).values()
    assert tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key)) == SECTIONS


def test_base_says_every_unit_and_every_zero_of_the_table():
    words = comments()
    assert set(words) >= set(KEYS)
    units = [key for key in KEYS if KEYS[key].unit]
    zeros = [key for key in KEYS if KEYS[key].zero]
    assert len(units) >= 20 and len(zeros) >= 8
    for key in units:
        assert re.search(rf"\b{KEYS[key].unit}\b", words[key]), (key, words[key])
    for key in zeros:
        assert f"0: {KEYS[key].zero}" in words[key], (key, words[key])
    for key, rule in KEYS.items():  # and every choice
        if rule.choices is not None and not callable(rule.choices) and rule.length is None:
            missing = [x for x in rule.choices if x not in words[key] and x != str(VALUES[key])]
            assert not missing, (key, missing)


@pytest.mark.parametrize(
    "text, words, holds, lacks",
    [
        ("[0, 1]", "from 0 to 1", (0, 1), (-0.1, 1.1)),
        ("(0, 1)", "above 0 and below 1", (0.5,), (0, 1)),
        ("[0, 1)", "at least 0 and below 1", (0,), (1,)),
        ("(0, inf)", "above 0", (1e30,), (0,)),
        ("[2, inf)", "at least 2", (2,), (1,)),
        ("(-inf, inf)", "", (-5, 5), ()),
    ],
)
def test_intervals(text, words, holds, lacks):
    interval = Interval.parse(text)
    assert interval.words() == words
    assert all(map(interval.holds, holds)) and not any(map(interval.holds, lacks))


def test_the_door_costs_a_few_milliseconds():
    config = base.get_config()
    started = time.process_time()
    for _ in range(10):
        door.check(config)
    assert (time.process_time() - started) / 10 < 0.05  # s; measured 0.0003


# Records.


def test_a_record_is_filled_by_name_and_can_be_hashed():
    config = base.get_config()
    layout = fill(montage.Layout, config.montage)
    assert layout.copies == (1, 1, 1, 2) and layout.boundary_sigma == 0.0
    lists = {"levels": 2, "copies": [1, 2], "shrink": "nearest", "assembly": "montage"}
    assert hash(fill(montage.Layout, lists, boundary_sigma=0.5)) is not None
    plain = program.plain_config(config)
    for cls, section in ((Architecture, "model"), (augment.Settings, "augment")):
        assert fill(cls, plain[section]) == fill(cls, config[section])
    with pytest.raises(UserError, match="settings of .*Layout lack boundary_sigma"):
        fill(montage.Layout, lists)


def test_a_record_in_a_record_is_filled_too():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Inner:
        a: tuple[int, ...]

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        b: float

    Outer.__annotations__ = {"inner": Inner, "b": float}
    assert fill(Outer, {"inner": {"a": [1, [2]]}, "b": 1.0, "c": 3}) == Outer(Inner((1, (2,))), 1.0)


def test_every_paper_row_passes_the_door():
    for words in ("", "byol", "moco", "detco", "supervised,swin_t", "vanilla", "c4", "coco"):
        door.check(mcl.get_config(words))
    for words in ("mosaic", "copy_paste", "authors", "swin_t,loss=d,levels=2", "mask=.5"):
        door.check(mcl.get_config(words))


def test_settings_import_no_accelerator_library():
    """A wrong key is told before JAX is loaded, and the table costs no second."""
    import pathlib

    import mcl_jax.settings

    for path in pathlib.Path(mcl_jax.settings.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("jax", "flax", "numpy")], path


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
    assert counts["refused at the door"] >= 100 and counts["built"] >= 8, counts
