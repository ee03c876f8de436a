"""Arguments of the library's functions that are neither keys nor paths: their types and ranges."""

from typing import Any

from mcl_jax.errors import UserError
from mcl_jax.settings.effects import NOTHING
from mcl_jax.settings.keys import EXPORTS
from mcl_jax.settings.rules import Interval, Rule

_COUNT = Interval.parse("[1, inf)")
RULES = {
    "stop_after": Rule(int, NOTHING, _COUNT, "steps"),
    "profile": Rule(int, NOTHING, _COUNT, "steps", length=(2, 2), order="range"),
    "target": Rule(str, NOTHING, choices=EXPORTS),
    "origin": Rule(str, NOTHING),
    "parts": Rule(str, NOTHING),
    "average": Rule(int, NOTHING, _COUNT, "checkpoints"),
    "divide_weights": Rule(float, NOTHING, Interval.parse("(0, inf)")),
    "fold_norms": Rule(bool, NOTHING),
    "owner": Rule(bool, NOTHING),
    "batch_size": Rule(int, NOTHING, _COUNT, "images"),
}


def demand(**values: Any) -> None:
    """Refuses arguments that are of another type or outside their range; None is "not given".

    Raises:
      UserError: names the first of them, and what it must be.

    Example:
      >>> demand(batch_size=0)
      UserError: batch_size is 0; it must be a whole number of images from 1 to 2,147,483,647
    """
    for name, value in values.items():
        if value is not None and not RULES[name].allows(value):
            raise UserError(f"{name} is {value!r}; it must be {RULES[name].words()}")


def demand_callables(name: str, values: Any) -> None:
    """UserError unless it is a list or tuple of functions."""
    if not isinstance(values, list | tuple) or not all(map(callable, values)):
        raise UserError(f"{name} is {values!r}; it must be a list of functions")
