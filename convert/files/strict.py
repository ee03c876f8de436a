"""Strictness: arrays against an expected list, every problem collected before one error.

Shapes: arrays are whatever the expected list says.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mcl_jax.convert.files.refusals import printable
from mcl_jax.errors import UserError

SHOWN_PROBLEMS = 40  # a wrong architecture has hundreds; the first ones tell which


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts of arrays -> {'a/b/c': array}; empty dicts vanish.

    As flax.traverse_util.flatten_dict; but nothing in convert/files imports JAX, for the
    fine-tuning scripts run without it.
    """
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}/")
        else:
            flat[path] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def problems(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is missing, unexpected, misshapen, of a wrong type or not finite, each by its name.

    Args:
      arrays: name -> array, exactly those that must be accounted for.
      expected: name -> shape.
    """
    sentences = [f"missing {name}" for name in expected if name not in arrays]
    sentences += [f"unexpected {name}" for name in arrays if name not in expected]
    for name, shape in expected.items():
        array = arrays.get(name)
        if array is None:
            continue
        if array.shape != shape:
            sentences.append(f"{name} has shape {array.shape}, expected {shape}")
        elif array.dtype != np.float32:
            sentences.append(f"{name} is {array.dtype}, expected float32")
        elif not np.isfinite(array).all():
            sentences.append(
                f"{name} has {np.count_nonzero(~np.isfinite(array))} values not finite"
            )
    return sentences


def demand(sentences: list[str], subject: str) -> None:
    """Raises UserError that names every problem (the first ones of very many)."""
    if not sentences:
        return
    text = printable("; ".join(sentences[:SHOWN_PROBLEMS]))  # names come from files
    more = len(sentences) - SHOWN_PROBLEMS
    tail = f"; and {more} more" if more > 0 else ""
    count = "1 problem" if len(sentences) == 1 else f"{len(sentences)} problems"
    raise UserError(f"{subject}: {count}: {text}{tail}")
