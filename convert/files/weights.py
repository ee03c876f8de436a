"""One network out of a file of weights of any format, wherever in it the network is.

A file is nested containers; the path to an array and its name are one dotted name here:
`state_dict.module.encoder_q.conv1.weight`. Which projects write which: convert/files/styles.py.

Shapes: as in the file. Needs numpy alone: the fine-tuning scripts run without JAX.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcl_jax.convert.files import content, networks
from mcl_jax.convert.files.refusals import few, printable
from mcl_jax.convert.files.styles import ORIGINS, STYLES
from mcl_jax.errors import UserError

DEEPEST = 20  # containers in each other; no project comes near


class Weights(NamedTuple):
    """What was read.

    Attributes:
      arrays: name in the library's table -> array.
      behind_prefix: the same name -> the file's, behind the prefix.
      backbone: those names by which the network was found, which are its backbone's.
      style: key of STYLES.
      prefix: what stands before the names in the file; '' for nothing.
      notes: what the user should know: the prefix, and other networks.
    """

    arrays: dict[str, np.ndarray]
    behind_prefix: dict[str, str]
    backbone: frozenset[str]
    style: str
    prefix: str
    notes: list[str]


def read(path: Path, origin: str, network: str | None = None) -> Weights:
    """Reads one network of a file, of any format in convert/files/content.py.

    Args:
      path: the file.
      origin: whose names it has, one of ORIGINS.
      network: which of several networks, by its name in the list of them; None: the only one.

    Raises:
      UserError: in one line, for what cannot be read, holds no such network, or several and none
        is named.

    Example:
      found = weights.read(Path("checkpoint_0199.pth.tar"), "torchvision", "encoder_q")
      found.arrays["layer1.0.conv1.weight"]
    """
    return select(content.load(path), path.name, origin=origin, network=network)


def select(tree: Any, file: str, origin: str, network: str | None = None) -> Weights:
    """`read` of what `content.load` gave; `file` is what it is called in messages."""
    if isinstance(tree, Mapping) and str(tree.get("__author__")) == "Caffe2":
        raise UserError(
            f"{file} holds Caffe2's weights: for BGR images, with the stride in the 1x1 "
            "convolutions; no network here computes that"
        )
    leaves = flatten(tree, file)
    candidates = networks.find(leaves, ORIGINS[origin].styles)
    candidates = networks.merge(candidates, lambda name: as_array(leaves[name], name))
    if not candidates:
        raise UserError(nothing_known(file, leaves, origin))
    labels = networks.label(candidates)
    index = networks.choose(labels, candidates, name=network, file=file)
    chosen = candidates[index]
    arrays = {key: as_array(leaves[name], name) for key, name in chosen.names.items()}
    prefix = chosen.prefixes[0]
    notes = [f"names are taken from behind {printable(prefix)!r}"] if prefix else []
    if others := [names[0] for i, names in enumerate(labels) if i != index]:
        notes.append(f"other networks of the file, not read: {', '.join(map(printable, others))}")
    behind = {key: name.removeprefix(prefix) for key, name in chosen.names.items()}
    backbone = frozenset(key for key, name in chosen.names.items() if name in chosen.landmarks)
    return Weights(
        arrays, behind, backbone=backbone, style=chosen.style, prefix=prefix, notes=notes
    )


def flatten(tree: Any, file: str) -> dict[str, Any]:
    """Name -> array or tensor, in the file's order.

    Raises:
      UserError: where there is none, or two have the same name.
    """
    leaves: dict[str, Any] = {}
    others: list[str] = []
    for name, x in _walk(tree, "", set(), 0):
        if not is_array(x):
            others.append(name)
        elif name in leaves:
            raise UserError(f"{file} holds two arrays of the name {printable(name)}")
        else:
            leaves[name] = x
    if not leaves and not isinstance(tree, Mapping):
        raise UserError(f"{file} holds a {type(tree).__name__}, not a dict of arrays")
    if not leaves:
        raise UserError(
            f"{file} has no array under {few(others) or 'any name: it is an empty dict'}"
        )
    return leaves


def _walk(tree: Any, name: str, containers: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Everything that is no container. Each container once: a file may hold itself."""
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield name, tree
        return
    if id(tree) in containers or depth > DEEPEST:
        return
    containers.add(id(tree))
    for key, x in items:
        yield from _walk(x, f"{name}.{key}" if name else str(key), containers, depth + 1)


def is_array(x: Any) -> bool:
    """Whether a leaf is an array or tensor."""
    torch = sys.modules.get("torch")  # imported, if the file is torch's
    return isinstance(x, np.ndarray) or (torch is not None and isinstance(x, torch.Tensor))


def as_array(x: Any, name: str) -> np.ndarray:
    """An array or tensor as numpy, half precision widened to float32, which loses nothing.

    Raises:
      UserError: for a tensor that numpy cannot hold.
    """
    if isinstance(x, np.ndarray):
        return x.astype(np.float32) if x.dtype == np.float16 else x
    try:
        half = x.is_floating_point() and x.element_size() == 2  # float16 and bfloat16
        return (x.float() if half else x).detach().numpy()
    except Exception as error:  # torch raises several kinds: sparse, quantized, without data
        raise UserError(
            f"{printable(name)} is a tensor that numpy cannot hold ({x.layout}, {x.dtype}, on "
            f"{x.device}): save it as a dense float32 on the CPU"
        ) from error


def nothing_known(file: str, leaves: Mapping[str, Any], origin: str) -> str:
    """That a file holds nothing under an origin's names, and what it holds instead."""
    text = f"{file} holds no {ORIGINS[origin].words} that is known here"
    others = [style for style in STYLES if style not in ORIGINS[origin].styles]
    if candidates := networks.find(leaves, others):
        style = STYLES[candidates[0].style]
        return f"{text}; it holds {style.words}: give --from {style.origin}"
    kind = ", as a ViT does: ResNets and Swin are read" if _is_vit(leaves) else ""
    return f"{text}; it begins with {few(leaves)}{kind}"


def _is_vit(leaves: Mapping[str, Any]) -> bool:
    return any(re.search(r"(^|\.)blocks\.0\.attn\.", name) for name in leaves)
