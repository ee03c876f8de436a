"""The networks among the arrays of a file, by their names: which there are, and which one is meant.

Shapes: as in the file; *leaves* are name -> array or tensor. Words: convert/files/styles.py.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mcl_jax.convert.files.refusals import few, printable
from mcl_jax.convert.files.styles import STYLES, Style
from mcl_jax.errors import UserError

FLAG = "--network"
BARE = "unprefixed"  # what a network is called that has no prefix, beside others that have one
# What wraps a module, at any place of a name: data parallelism, torch.compile, checkpointing.
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


class Network(NamedTuple):
    """A network in a file.

    Attributes:
      style: key of STYLES.
      names: name in the library's table -> name in the file (a key of `leaves`).
      landmarks: those names in the file by which it was found.
      prefixes: what stands before its names; more than one where it is there several times.
    """

    style: str
    names: dict[str, str]
    landmarks: frozenset[str]
    prefixes: tuple[str, ...]


def find(leaves: Mapping[str, Any], styles: Iterable[str]) -> list[Network]:
    """The networks of these styles; an array that one style explains is no other's."""
    unwrapped = {name: WRAPPERS.sub("", name) for name in leaves}
    if len(set(unwrapped.values())) < len(
        leaves
    ):  # the wrapper is all that tells two networks apart
        unwrapped = {name: name for name in leaves}
    networks: list[Network] = []
    explained: set[str] = set()
    for style in styles:
        for root, landmarks in _roots(unwrapped, STYLES[style]).items():
            if explained.isdisjoint(landmarks):
                networks.append(_network(style, root, landmarks, unwrapped))
                explained |= networks[-1].landmarks
    return networks


def _roots(unwrapped: Mapping[str, str], style: Style) -> dict[str, dict[str, str]]:
    """Unwrapped prefix -> its landmarks in the file -> the part of the network that each tells."""
    # The shortest prefix counts: behind it stands the whole name, not the end of one.
    pattern = re.compile(rf"((?:[^.]+\.)*?){style.landmark}")
    roots: dict[str, dict[str, str]] = {}
    for name, plain in unwrapped.items():
        if match := pattern.fullmatch(plain):
            roots.setdefault(match[1], {})[name] = match[2]
    return {root: x for root, x in roots.items() if len(set(x.values())) >= style.parts}


def _network(
    style: str, root: str, landmarks: Mapping[str, str], unwrapped: Mapping[str, str]
) -> Network:
    names: dict[str, str] = {}
    for name, plain in unwrapped.items():
        if plain.startswith(root):
            key = STYLES[style].own_name(plain[len(root) :])
            if key in names:
                raise UserError(
                    f"{printable(key)} is in the file twice: as {printable(names[key])} and as "
                    f"{printable(name)}; save one network alone"
                )
            names[key] = name
    first = next(iter(landmarks))
    tail = unwrapped[first][len(root) :]
    # A wrapper inside a name: the prefix is then said without wrappers.
    prefix = first[: -len(tail)] if first.endswith(tail) else root
    return Network(style, names, frozenset(landmarks), prefixes=(prefix,))


def merge(networks: Iterable[Network], array: Callable[[str], np.ndarray]) -> list[Network]:
    """One for several with the same arrays: a module that has two names is saved twice.

    Args:
      networks: as found.
      array: name in the file -> the array.
    """
    merged: list[Network] = []
    for network in networks:
        for i, other in enumerate(merged):
            if _same(network, other, array):
                merged[i] = other._replace(prefixes=other.prefixes + network.prefixes)
                break
        else:
            merged.append(network)
    return merged


def _same(a: Network, b: Network, array: Callable[[str], np.ndarray]) -> bool:
    """Whether all arrays by which networks are found are equal."""
    own_a, own_b = (
        {key: name for key, name in network.names.items() if name in network.landmarks}
        for network in (a, b)
    )
    return set(own_a) == set(own_b) and all(
        np.array_equal(array(own_a[key]), array(own_b[key])) for key in own_a
    )


def label(networks: list[Network]) -> list[tuple[str, ...]]:
    """What each network is called, by each of its prefixes: the part that tells it from others."""
    paths = [
        [WRAPPERS.sub("", prefix).strip(".").split(".") for prefix in network.prefixes]
        for network in networks
    ]
    every = [path for variants in paths for path in variants]
    if len({tuple(path) for path in every}) < len(every):  # told apart by a wrapper alone
        paths = [[prefix.strip(".").split(".") for prefix in n.prefixes] for n in networks]
        every = [path for variants in paths for path in variants]
    if len(networks) > 1:
        for end in (0, -1):
            while all(every) and len({path[end] for path in every}) == 1:
                for path in every:
                    del path[end]
    return [tuple(".".join(path) or BARE for path in variants) for variants in paths]


def choose(
    labels: list[tuple[str, ...]], networks: list[Network], name: str | None, file: str
) -> int:
    """Which network is meant.

    Raises:
      UserError: lists them, where that is not clear.
    """
    if name is None and len(networks) == 1:
        return 0
    listing = ", ".join(
        printable(paths[0]) + (f" (also as {few(paths[1:])})" if paths[1:] else "")
        for paths in labels
    )
    if name is None:
        raise UserError(f"{file} holds several networks: {listing}; choose one with {FLAG} NAME")
    name = name.strip(".")
    names_of = [
        {*paths, *(prefix.strip(".") for prefix in network.prefixes)}
        for paths, network in zip(labels, networks)  # noqa: B905  (Python 3.9)
    ]
    fitting = [i for i, names in enumerate(names_of) if name in names] or [
        i for i, names in enumerate(names_of) if any(name in path.split(".") for path in names)
    ]
    if len(fitting) != 1:
        count = "is none" if not fitting else "is not one alone"
        raise UserError(f"{FLAG} {printable(name)} {count} of {file}'s networks: {listing}")
    return fitting[0]
