"""Checks before fine-tuning in Detectron2: what a file of weights holds, and what a model takes of it.

Needs no JAX and no Detectron2: scripts/finetune_detectron2.py runs it in Detectron2's environment.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mcl_jax.convert.files import content, weights
from mcl_jax.convert.files.refusals import few
from mcl_jax.errors import UserError

# Detectron2 reads a file itself: two formats by the suffix, and names without a prefix.
SUFFIX = {"pickle": ".pkl", "torch": ".pth"}
PREFIXES = ("", "model.", "module.", "model.module.")
CONVERT = (
    "mcl-jax convert FILE --from detectron2 --out RUN, then mcl-jax convert RUN --to detectron2 "
    "--out exported, makes one that it loads"
)
# Detectron2's ResNets: depth -> (blocks of res2..res5, whether they are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
COUNTER = "num_batches_tracked"  # of BatchNorm; nothing reads it

# Parts of a detector by the names of its parameters, and what is new in every fine-tuning.
BACKBONE = ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "roi_heads.res5.")
NEW = ("roi_heads.res5.norm.",)
# A layer of a name -> the key that says which norm it has.
NORMS = {
    r"(^|\.)fpn_": "MODEL.FPN.NORM",
    r"(^|\.)box_head\.": "MODEL.ROI_BOX_HEAD.NORM",
    r"(^|\.)mask_head\.": "MODEL.ROI_MASK_HEAD.NORM",
    r"(^|\.)(stem|res\d)\.": "MODEL.RESNETS.NORM",
}


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
    selection = weights.select(tree, path.name, origin="detectron2")
    if selection.prefix not in PREFIXES:
        raise UserError(
            f"{path.name} has its names behind {selection.prefix!r}, where Detectron2 does not look: "
            f"{CONVERT}"
        )
    if kind == "pickle" and not {"model", "__author__"} <= set(tree):
        raise UserError(
            f"{path.name} lacks 'model' or '__author__', so that Detectron2 would take it for a "
            f"file of Caffe2: {CONVERT}"
        )
    leaves = weights.flatten(tree, path.name)
    names = {
        name[len(selection.prefix) :]: tuple(x.shape)
        for name, x in leaves.items()
        if name.startswith(selection.prefix) and len(x.shape)
    }
    if tree.get("matching_heuristics") is not True and "stem.conv1.weight" in names:
        raise UserError(
            f"{path.name} has short names (stem.conv1.weight) and no 'matching_heuristics', so "
            f"that Detectron2 would load none: {CONVERT}"
        )
    starts = {"backbone": "stem.", "FPN": "fpn_", "box head": "box_head."}
    parts = [part for part, start in starts.items() if any(f".{start}" in f".{n}" for n in names)]
    return names, [f"{path}: {len(names)} arrays ({', '.join(parts)})"]


def match(model: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Detectron2's matching heuristics: model's name -> the file's, the longest dot-suffix of it.

    Raises:
      UserError: where a name of the file fits two of the model, which Detectron2 refuses.
    """
    names, pairs = list(names), {}
    for key in model:
        fitting = [name for name in names if key == name or key.endswith("." + name)]
        if fitting:
            pairs[key] = max(fitting, key=len)
    users: dict[str, str] = {}
    for key, name in pairs.items():
        if name in users:
            raise UserError(f"{name} of the file fits both {users[name]} and {key}")
        users[name] = key
    return pairs


def loaded(model: Mapping[str, tuple], weights: Mapping[str, tuple]) -> list[str]:
    """What a model takes from a file, part by part, in words; shapes by name on both sides.

    Args:
      model: of the whole model, or of the parts that weights can fill (expected.parts).
      weights: of the file.

    Raises:
      UserError: unless all of the backbone is taken, and all of it used, and every layer is taken
        whole or not at all: Detectron2 itself only warns.
    """
    pairs = match(model, weights)
    learned = [key for key in model if not key.endswith(COUNTER)]
    matches = {key for key, name in pairs.items() if tuple(model[key]) == tuple(weights[name])}
    skipped = sorted(set(pairs) - matches)
    unused = [
        name
        for name in set(weights) - {pairs[key] for key in matches}
        if not name.endswith(COUNTER)
    ]
    _demand_backbone(model, weights, matches, skipped)
    _demand_same_stages(model, weights, unused)
    _demand_whole_layers(model, weights, {key: pairs[key] for key in matches})
    scratch = [key for key in learned if key not in matches]
    arrays = len([key for key in learned if key in matches])
    return [
        f"{arrays} of {len(learned)} arrays come from the file, {len(unused)} of it are not used"
        + (f": {', '.join(_layers(unused))}" if unused else ""),
        *([f"from scratch: {', '.join(_layers(scratch))}"] if scratch else []),
        *(f"NOT loaded, another shape: {key}" for key in skipped),
    ]


def _demand_backbone(
    model: Mapping[str, tuple],
    weights: Mapping[str, tuple],
    matches: Iterable[str],
    skipped: Iterable[str],
) -> None:
    """UserError unless the file fills the backbone."""
    matches, skipped = set(matches), list(skipped)
    learned = [key for key in model if not key.endswith(COUNTER)]
    backbone = [key for key in learned if key.startswith(BACKBONE) and not key.startswith(NEW)]
    missing = [key for key in backbone if key not in matches]
    if not missing and matches:
        return
    shapes = f"; of another shape: {', '.join(skipped[:3])}" if skipped else ""
    ours, theirs = network(model), network(weights)
    another = (
        f"; the file holds {theirs}, the configuration builds {ours}" if ours != theirs else ""
    )
    raise UserError(
        f"the weights do not fill the backbone: {len(missing)} arrays are missing, first "
        f"{few(missing or learned)}{shapes}{another}"
    )


def network(names: Iterable[str]) -> str:
    """Which ResNet names belong to: 'a ResNet-50'; 'no backbone' where none of its stages is there."""
    blocks = {stage: 0 for stage in "2345"}
    names = list(names)
    for name in names:
        if place := re.search(r"(?:^|\.)res(\d)\.(\d+)\.", name):
            blocks[place[1]] = max(blocks.get(place[1], 0), int(place[2]) + 1)
    counts = tuple(blocks[stage] for stage in "2345")
    bottleneck = any(re.search(r"(?:^|\.)res\d\.\d+\.conv3\.", name) for name in names)
    for depth, kind in DEPTHS.items():
        if kind == (counts, bottleneck):
            return f"a ResNet-{depth}"
    return f"stages of {counts} blocks" if any(counts) else "no backbone"


def _demand_same_stages(
    model: Mapping[str, tuple], weights: Mapping[str, tuple], unused: Iterable[str]
) -> None:
    """UserError where a stage of the file has more blocks than the model's."""
    stages = {place[1] for key in model if (place := re.search(r"(?:^|\.)(res\d)\.\d+\.", key))}
    more = sorted(
        name
        for name in unused
        if (place := re.search(r"(?:^|\.)(res\d)\.\d+\.(conv|shortcut)", name))
        and place[1] in stages
        and ".norm." not in name
    )
    if more and network(model) != network(weights):
        raise UserError(
            f"the file holds {network(weights)}, the configuration builds {network(model)} "
            f"(MODEL.RESNETS.DEPTH): {few(more)} would be left out"
        )


def _demand_whole_layers(
    model: Mapping[str, tuple], weights: Mapping[str, tuple], matches: Mapping[str, str]
) -> None:
    """UserError where a convolution is taken without its norm or bias, or these without it."""
    ours, theirs = _by_layer(model), _by_layer(weights)
    for layer, file_layer in sorted({(_layer(key), _layer(name)) for key, name in matches.items()}):
        leaves, file_leaves = ours[layer], theirs[file_layer]
        if {leaf for leaf in leaves if f"{layer}.{leaf}" in matches} == leaves == file_leaves:
            continue
        if leaves == file_leaves:
            raise UserError(f"{layer} would be loaded in part: the rest of it has another shape")
        key = next((key for pattern, key in NORMS.items() if re.search(pattern, layer)), "its NORM")
        norms = any(leaf.startswith("norm.") for leaf in file_leaves)
        right = "'SyncBN', for the file holds norms"
        if not norms:
            right = "'' (no norm), for the file holds biases, as --fold-norms writes them"
        raise UserError(
            f"{layer} would be loaded in part: the model has {', '.join(sorted(leaves))}, the file "
            f"{', '.join(sorted(file_leaves))}; {key} must be {right}"
        )


def _layer(name: str) -> str:
    """'backbone.fpn_lateral2' of its weight, bias and norm.running_mean."""
    return name.rsplit(".", 1)[0].removesuffix(".norm")


def _layers(names: Iterable[str]) -> list[str]:
    return sorted({_layer(name) for name in names})


def _by_layer(names: Iterable[str]) -> dict[str, set[str]]:
    """Layer -> what it consists of."""
    layers: dict[str, set[str]] = {}
    for name in names:
        if not name.endswith(COUNTER):
            layers.setdefault(_layer(name), set()).add(name[len(_layer(name)) + 1 :])
    return layers
