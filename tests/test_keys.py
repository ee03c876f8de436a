"""Keys are a function of (seed, step, device, purpose) and nothing else."""

import itertools

import jax

from mcl_jax.keys import Purpose, key_for


def test_every_argument_matters_and_the_same_ones_replay():
    arguments = itertools.product((0, 1), (0, 1), (0, 1), (Purpose.AUGMENT, Purpose.MONTAGE))
    keys = {tuple(jax.random.key_data(key_for(*a)).tolist()) for a in arguments}
    assert len(keys) == 16
    again = jax.random.key_data(key_for(1, 0, key_group=1, purpose=Purpose.MONTAGE)).tolist()
    assert tuple(again) in keys


def test_purposes_keep_their_numbers():
    # part of the identity of runs: a renumbered purpose changes every recorded run
    assert {p.name: p.value for p in Purpose} == {
        **{"INIT": 0, "AUGMENT": 1, "MONTAGE": 2, "SHUFFLE": 3},
        **{"JIGSAW": 4, "DROP_PATH": 5, "PROBE": 6, "LABEL_BUDGET": 7, "PROBE_AUGMENT": 8},
    }
