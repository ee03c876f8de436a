"""Collectives are counted in HLO text, asynchronous pairs once."""

from mcl_jax.compiled import collectives


def test_counting():
    text = """
  %all-reduce.1 = f32[4]{0} all-reduce(f32[4]{0} %x), replica_groups={}
  %all-reduce-start.2 = f32[4]{0} all-reduce-start(f32[4]{0} %y)
  %all-reduce-done.2 = f32[4]{0} all-reduce-done(f32[4]{0} %all-reduce-start.2)
  %ag = (f32[4]{0}, f32[8]{0}) all-gather-start(%z)
  %fusion = f32[4]{0} fusion(%all-reduce.1)
"""
    assert collectives(text) == {"all-reduce": 2, "all-gather": 1}
