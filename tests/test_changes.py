"""Resume says what changed: keys, data, code, and what follows."""

import pytest
from conftest import tiny_config

from mcl_jax import program
from mcl_jax.settings import changes, effects
from mcl_jax.settings.keys import KEYS

META = {
    "config": program.plain_config(tiny_config()),
    "images": 40,
    "data_digest": "a" * 64,
    "mcl_jax": "1.0",
    "commit": "c" * 40,
}


def with_key(key, value):
    config = program.plain_config(tiny_config())
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    return META | {"config": config}


def lines(now, before=META):
    return [change.line for change in changes.differences(before, now)]


def test_nothing_changed():
    assert lines(META) == []


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_named_with_both_values_and_what_follows(key):
    (line,) = lines(with_key(key, "other"))
    old = META["config"]
    for part in key.split("."):
        old = old[part]
    assert line == f"{key} {old} -> other: {KEYS[key].changes}"


def test_what_does_not_fit_is_told_from_what_does():
    for key in ("model.width", "method", "optimizer.name", "moco.queue_size", "montage.levels"):
        (change,) = changes.differences(META, with_key(key, 3))
        assert changes.of_arrays([change]) == [change]
    for key in ("data.batch_size", "seed", "log.every_steps", "optimizer.base_lr"):
        assert not changes.of_arrays(changes.differences(META, with_key(key, 3)))


def test_other_data_and_other_code():
    fewer = META | {"images": 20, "data_digest": "b" * 64}
    assert lines(fewer) == [f"images 40 -> 20: {effects.ORDER_AND_SCHEDULE}"]
    renamed = META | {"data_digest": "b" * 64}
    assert lines(renamed) == [f"data_digest aaaaaaaaaaaa -> bbbbbbbbbbbb: {changes.OTHER_FILES}"]
    newer = META | {"mcl_jax": "2.0", "commit": "d" * 40}
    assert lines(newer) == [f"mcl_jax version 1.0 -> 2.0: {changes.OTHER_CODE}"]
    (line,) = lines(META | {"commit": "d" * 40})
    assert line.startswith("code cccccccccccc -> dddddddddddd: ")
    (line,) = lines(META | {"commit": "c" * 40 + "+"})  # the same commit, with edited files
    assert line.startswith("code cccccccccccc -> cccccccccccc+: ")


def test_what_an_old_checkpoint_does_not_hold_has_not_changed():
    old = {"config": {"seed": 0, "data": {"batch_size": 64, "forgotten": 1}}}
    assert lines(META, before=old) == []
