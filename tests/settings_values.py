"""Values at and just outside the ends of every key's range, for tests of the door."""

import math

import numpy as np
import pytest
from conftest import tiny_config

from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.settings import door
from mcl_jax.settings.keys import SECTIONS
from mcl_jax.settings.rules import LARGEST_COUNT

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
