"""Collectives are read from HLO text, asynchronous pairs once."""

from collections import Counter

import jax
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
    collective = list(collectives(text))
    assert Counter(c.kind for c in collective) == {"all-reduce": 2, "all-gather": 1}
    assert [c.bytes for c in collective] == [16, 16, 32]  # of what arrives, not of what is sent


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("(f32[2,64]{1,0}, f32[]{:T(128)S(6)}, pred[7])", 512 + 4 + 7),
        ("s64[2]", 16),
    ],
)
def test_bytes_of_a_type(shape, size):
    (collective,) = collectives(f"  ROOT %x.1 = {shape} all-reduce(%y), replica_groups={{}}")
    assert collective.bytes == size


@pytest.mark.parametrize(
    ("groups", "expected", "crosses"),
    [
        ("{}", None, True),
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]], False),
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]], True),
        ("[2,2]<=[4]", [[0, 1], [2, 3]], False),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]], True),
        ("[1,4]<=[4]", [[0, 1, 2, 3]], True),
        # the form of jaxlib 0.11
        ("mesh['data'=4] {'data'}", [[0, 1, 2, 3]], True),
        ("mesh['host'=2,'chip'=2] {'chip'}", [[0, 1], [2, 3]], False),
        ("mesh['host'=2,'chip'=2] {'host'}", [[0, 2], [1, 3]], True),
        ("mesh['host'=2,'chip'=2] {'chip','host'}", [[0, 2, 1, 3]], True),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]], True),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]], True),
        ("mesh['data'=4] {'data':(1)2}", [[0, 2], [1, 3]], True),
        ("mesh['data'=4] {'data':(2)2}", [[0, 1], [2, 3]], False),
    ],
)
def test_groups_and_the_hosts_they_cross(groups, expected, crosses):
    (collective,) = collectives(
        f"  %r = f32[4]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%a"
    )
    if expected is None:
        assert collective.replica_groups is None
    else:
        np.testing.assert_array_equal(collective.replica_groups, expected)
    assert collective.crosses([0, 0, 1, 1]) is crosses
    assert not collective.crosses([0] * 4)


def test_groups_of_an_unknown_form_are_no_guess():
    with pytest.raises(ValueError, match="unknown form: stars"):
        list(collectives("  %r = f32[4]{0} all-reduce(%x), replica_groups=stars{{0}}"))


@pytest.mark.parametrize(
    ("axes", "expected"),
    [("host", [[0, 2], [1, 3]]), ("chip", [[0, 1], [2, 3]]), (("host", "chip"), [[0, 1, 2, 3]])],
)
def test_groups_of_this_jaxs_own_text(axes, expected):
    """Whatever form the installed compiler writes, it is read."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("host", "chip"))
    spec = jax.sharding.PartitionSpec(("host", "chip"))
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, axes), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    text = jax.jit(summed).lower(np.zeros((4, 2), np.float32)).compile().as_text()
    (collective,) = collectives(text)
    groups = [[0, 1, 2, 3]] if collective.replica_groups is None else collective.replica_groups
    np.testing.assert_array_equal(groups, expected)
