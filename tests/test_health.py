"""NaN and collapse end a run with an explanation."""

import pytest

from mcl_jax.runtime.health import HealthCheck, TrainingStopped

SETTINGS = {"collapse_share": 0.05, "collapse_patience": 3}


def values(loss=1.0, grad_norm=1.0, std=0.1):
    return {"loss": loss, "grad_norm": grad_norm, "std/level0": 0.1, "std/level3": std}


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"grad_norm": float("inf")}])
def test_a_non_finite_value_stops_at_once(bad):
    with pytest.raises(TrainingStopped, match="at step 7: lower optimizer.base_lr"):
        HealthCheck(SETTINGS, 100).check(7, values(**bad))


def test_a_checkpoint_is_only_spoken_of_where_there_is_one():
    nan = values(loss=float("nan"))
    with pytest.raises(TrainingStopped, match="no checkpoint was written before$"):
        HealthCheck(SETTINGS, 100).check(7, nan)
    with pytest.raises(TrainingStopped, match="newest checkpoint is of step 4, from before$"):
        HealthCheck(SETTINGS, 100, saved=lambda: 4).check(7, nan)


def test_a_gradient_of_exactly_0_stops_after_the_patience():
    """What is left of a batch of one image: loss 0, top-1 1.0, and nothing that anybody notices."""
    check, dead = HealthCheck(SETTINGS, 100), values(loss=0.0, grad_norm=0.0)
    for step, seen in enumerate([dead, dead, values(grad_norm=1e-30), dead, dead]):
        check.check(step, seen)
    with pytest.raises(TrainingStopped, match="exactly 0 at step 5, for 3 logs .*images differ"):
        check.check(5, dead)


def test_a_collapse_stops_after_its_patience_and_recovers_in_between():
    check = HealthCheck(SETTINGS, 100)  # healthy 0.1, floor 0.005
    for step, std in enumerate([0.004, 0.004, 0.006, 0.004, 0.004]):
        check.check(step, values(std=std))
    with pytest.raises(TrainingStopped, match=r"collapsed: std 4.00e-03 .* below 5.00e-03 for 3"):
        check.check(5, values(std=0.004))
