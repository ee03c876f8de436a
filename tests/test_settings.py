"""The one door: every key's range, unknown keys, combinations, and the table against base.py."""

import ast
import inspect
import re

import jax
import numpy as np
import pytest
from settings_values import (
    NEEDS,
    OF_TRAINING,
    VALUES,
    changed,
    inside,
    outside,
    refusal,
    small,
)

from mcl_jax import montage, program, sharding
from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import report
from mcl_jax.models.backbone import Architecture
from mcl_jax.planning import topology
from mcl_jax.report import profile
from mcl_jax.settings import door, effects
from mcl_jax.settings.keys import KEYS, SECTIONS
from mcl_jax.settings.records import fill
from mcl_jax.settings.rules import Interval, whole_number
from mcl_jax.views import augment


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


# Records.


def test_a_record_is_filled_by_name_and_can_be_hashed():
    config = base.get_config()
    layout = fill(montage.Layout, config.montage)
    assert layout.copies == (1, 1, 1, 2) and layout.boundary_sigma == 0.0
    lists = {"levels": 2, "copies": [1, 2], "shrink": "nearest", "assembly": "montage"}
    assert hash(fill(montage.Layout, lists, boundary_sigma=0.5)) is not None
    plain = program.plain_config(config)
    for cls, section in ((Architecture, "model"), (augment.AugmentSettings, "augment")):
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


def test_settings_import_no_accelerator_library():
    """A wrong key is told before JAX is loaded, and the table costs no second."""
    import pathlib

    import mcl_jax.settings

    for path in pathlib.Path(mcl_jax.settings.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("jax", "flax", "numpy")], path


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1_0", "²", "٣", "9" * 5000, "1.0", "x"])
def test_only_plain_digits_are_a_number(text):
    assert whole_number(text) is None
    assert (whole_number("0"), whole_number("007"), whole_number("20")) == (0, 7, 20)
    for refuse in (
        lambda: topology.parse(f"cpu:{text}"),
        lambda: topology.parse(f"v5e:{text}x{text}"),
        lambda: profile.first_and_last(f"{text}:{text}"),
        lambda: report.budgets([text]),
    ):
        with pytest.raises(UserError):
            refuse()
