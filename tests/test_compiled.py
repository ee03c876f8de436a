"""Collectives are read from HLO text, asynchronous pairs once."""

from collections import Counter

import numpy as np
import pytest

from mcl_jax.planning.compiled import collectives


def test_counting_and_sizes():
    text = """
  %all-reduce.1 = f32[4]{0} all-reduce(f32[4]{0} %x), replica_groups={}
  %all-reduce-start.2 = f32[4]{0} all-reduce-start(f32[4]{0} %y)
  %all-reduce-done.2 = f32[4]{0} all-reduce-done(f32[4]{0} %all-reduce-start.2)
  %ag = (f32[4]{0}, f32[8]{0}) all-gather-start(%z)
  %fusion = f32[4]{0} fusion(%all-reduce.1)
"""
    found = list(collectives(text))
    assert Counter(c.kind for c in found) == {"all-reduce": 2, "all-gather": 1}
    assert [c.bytes for c in found] == [16, 16, 32]  # of what arrives, not of what is sent


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("(f32[2,64]{1,0}, f32[]{:T(128)S(6)}, pred[7])", 512 + 4 + 7),
        ("s64[2]", 16),
    ],
)
def test_bytes_of_a_type(shape, size):
    (found,) = collectives(f"  ROOT %x.1 = {shape} all-reduce(%y), replica_groups={{}}")
    assert found.bytes == size


@pytest.mark.parametrize(
    ("groups", "expected", "crosses"),
    [
        ("{}", None, True),
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]], False),
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]], True),
        ("[2,2]<=[4]", [[0, 1], [2, 3]], False),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]], True),
        ("[1,4]<=[4]", [[0, 1, 2, 3]], True),
    ],
)
def test_groups_and_the_hosts_they_cross(groups, expected, crosses):
    (found,) = collectives(
        f"  %r = f32[4]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%a"
    )
    if expected is None:
        assert found.groups is None
    else:
        np.testing.assert_array_equal(found.groups, expected)
    assert found.crosses([0, 0, 1, 1]) is crosses
    assert not found.crosses([0] * 4)
