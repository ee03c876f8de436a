"""Checks before fine-tuning in Detectron2: the traps of a configuration, and what a file loads.

Needs no JAX and no Detectron2: scripts/finetune_detectron2.py runs it in Detectron2's environment.
Configurations here are nested dicts, `_BASE_` resolved.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mcl_jax.convert.files import content, weights
from mcl_jax.errors import UserError

BASE = "_BASE_"
# Detectron2 reads a file itself: two formats by the suffix, and names without a prefix.
SUFFIX = {"pickle": ".pkl", "torch": ".pth"}
PREFIXES = ("", "model.", "module.", "model.module.")
CONVERT = (
    "python -m convert FILE --from detectron2 --out RUN, then python -m convert RUN --to "
    "detectron2 --out exported, makes one that it loads"
)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def read_config(path: Path) -> dict[str, Any]:
    """A Detectron2 YAML with its `_BASE_`s merged below it.

    Raises:
      UserError: for a file that is missing or no YAML of keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys and values")
    base = content.pop(BASE, None)
    content = _parsed(content)
    return _merged(read_config(path.parent / base), content) if base else content


def _parsed(tree: dict[str, Any]) -> dict[str, Any]:
    """Tuples, which YAML does not have, out of their texts."""

    def value(x: Any) -> Any:
        if isinstance(x, dict):
            return _parsed(x)
        return ast.literal_eval(x) if isinstance(x, str) and x.startswith("(") else x

    return {key: value(x) for key, x in tree.items()}


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, x in own.items():
        nested = isinstance(x, dict) and isinstance(base.get(key), dict)
        both[key] = _merged(base[key], x) if nested else x
    return both


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'MODEL.FPN.NORM': 'SyncBN', ...}"""
    found = {}
    for key, x in tree.items():
        found |= leaves(x, f"{prefix}{key}.") if isinstance(x, Mapping) else {prefix + key: x}
    return found


def traps(config: Mapping[str, Any]) -> list[str]:
    """What of a configuration makes Detectron2 train something else than the weights are, in words.

    What a configuration does not say counts as Detectron2's own default, a trap in most cases.
    """
    own = leaves(config)
    found = []

    def demand(key: str, right: Any, why: str) -> None:
        if own.get(key, "Detectron2's default") != right:
            found.append(f"{key} is {own.get(key, 'not set')!r}, must be {right!r}: {why}")

    unlike = "the pre-trained network is another one, though it loads without complaint"
    demand("MODEL.RESNETS.STRIDE_IN_1X1", False, unlike)
    demand("INPUT.FORMAT", "RGB", "pre-training saw RGB")
    demand("MODEL.PIXEL_MEAN", MEAN, "ImageNet's in RGB order; the format does not reorder it")
    demand("MODEL.PIXEL_STD", STD, "ImageNet's in RGB order")
    demand("MODEL.BACKBONE.FREEZE_AT", 0, "the paper freezes nothing")
    norms = ["RESNETS"]
    if "FPN" in config.get("MODEL", {}):
        norms.append("FPN")
    if own.get("MODEL.ROI_HEADS.NAME") == "StandardROIHeads":
        norms.append("ROI_BOX_HEAD")
        head = "the pre-trained box head has four convolutions and one linear layer"
        demand("MODEL.ROI_BOX_HEAD.NUM_CONV", 4, head)
        demand("MODEL.ROI_BOX_HEAD.NUM_FC", 1, head)
    for part in norms:
        demand(f"MODEL.{part}.NORM", "SyncBN", "as in pre-training; others lose its statistics")
    demand("TEST.PRECISE_BN.ENABLED", True, "statistics of the last steps alone cost AP")
    return found


def read_weights(path: Path) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(name -> shape of what Detectron2 loads from a file, what is in it, in words).

    Raises:
      UserError: the file cannot be read, or Detectron2 would not find the network in it.
    """
    kind = content.format_of(path)
    if kind not in SUFFIX:
        raise UserError(f"{path} is {kind}, which Detectron2 does not read: {CONVERT}")
    if (path.suffix == ".pkl") != (kind == "pickle"):
        raise UserError(
            f"{path} is a file of {kind}: Detectron2 goes by its name, rename it to {SUFFIX[kind]}"
        )
    tree = content.load(path)
    found = weights.select(tree, path.name, "detectron2")
    if found.prefix not in PREFIXES:
        raise UserError(
            f"{path.name} has its names behind {found.prefix!r}, where Detectron2 does not look: "
            f"{CONVERT}"
        )
    if kind == "pickle" and not {"model", "__author__"} <= set(tree):
        raise UserError(
            f"{path.name} lacks 'model' or '__author__', so that Detectron2 would take it for a "
            f"file of Caffe2: {CONVERT}"
        )
    names = found.behind_prefix
    if tree.get("matching_heuristics") is not True and "stem.conv1.weight" in names.values():
        raise UserError(
            f"{path.name} has short names (stem.conv1.weight) and no 'matching_heuristics', so "
            f"that Detectron2 would load none: {CONVERT}"
        )
    starts = {"backbone": "stem.", "FPN": "fpn_", "box head": "box_head."}
    parts = [part for part, start in starts.items() if any(n.startswith(start) for n in names)]
    shapes = {name: found.arrays[own].shape for own, name in names.items()}
    return shapes, [f"{path}: {len(shapes)} arrays ({', '.join(parts)})"]


def match(model: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Detectron2's matching heuristics: model's name -> the file's, the longest dot-suffix of it.

    Raises:
      UserError: where a name of the file fits two of the model, which Detectron2 refuses.
    """
    names, found = list(names), {}
    for key in model:
        fitting = [name for name in names if key == name or key.endswith("." + name)]
        if fitting:
            found[key] = max(fitting, key=len)
    users: dict[str, str] = {}
    for key, name in found.items():
        if name in users:
            raise UserError(f"{name} of the file fits both {users[name]} and {key}")
        users[name] = key
    return found


# Parts of a detector by the names of its parameters, and what is new in every fine-tuning.
BACKBONE = ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "roi_heads.res5.")
NEW = ("roi_heads.res5.norm.",)


def loaded(model: Mapping[str, tuple], weights: Mapping[str, tuple]) -> list[str]:
    """What a model takes from a file, part by part, in words; shapes by name on both sides.

    Raises:
      UserError: unless all of the backbone is taken: Detectron2 itself only warns.
    """
    found = match(model, weights)
    learned = [key for key in model if not key.endswith("num_batches_tracked")]
    taken = {key for key, name in found.items() if tuple(model[key]) == tuple(weights[name])}
    skipped = sorted(set(found) - taken)
    missing = [
        key
        for key in learned
        if key.startswith(BACKBONE) and not key.startswith(NEW) and key not in taken
    ]
    if missing or not taken:
        shown = ", ".join((missing or learned)[:3])
        shapes = f"; of another shape: {', '.join(skipped[:3])}" if skipped else ""
        raise UserError(
            f"the weights do not fill the backbone: {len(missing)} arrays are missing, first "
            f"{shown}{shapes}"
        )
    unused = len(set(weights) - {found[key] for key in taken})
    scratch = [key for key in learned if key not in taken]
    modules = sorted({".".join(key.split(".")[:3]) for key in scratch})
    return [
        f"{len(taken)} of {len(learned)} arrays come from the file, {unused} of it are not used",
        f"from scratch: {', '.join(modules)}",
        *(f"NOT loaded, another shape: {key}" for key in skipped),
    ]
