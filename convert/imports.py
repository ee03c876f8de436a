"""Weights of other libraries into a training state of step 0: to start from supervised ones, say.

Shapes: here HWIO and [in, out]; there as the view of the library says.
"""

import json
import re
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mcl_jax import program
from mcl_jax.convert.files import formats, strict, weights
from mcl_jax.convert.files.content import format_of
from mcl_jax.convert.files.formats import Arrays
from mcl_jax.convert.files.refusals import few, one_line
from mcl_jax.convert.names import classifiers, detectors
from mcl_jax.convert.names.architectures import PARTS, from_config, on_one_device
from mcl_jax.convert.names.views import NETWORKS, View
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.resnet import ARCHITECTURES as RESNETS
from mcl_jax.models.swin import ARCHITECTURES as SWINS
from mcl_jax.state import TrainState

# Vectors of a file whose length is a size of the network; several, as one may be missing.
VECTORS = {
    "width": (
        "params/encoder/backbone/stem/norm/bias",
        "params/encoder/backbone/stem/norm/scale",
        "batch_stats/encoder/backbone/stem/norm/mean",
        "params/encoder/backbone/patch_norm/bias",
        "params/encoder/backbone/patch_norm/scale",
    ),
    "fpn_channels": (
        "params/encoder/fpn/lateral5/norm/bias",
        "params/encoder/fpn/lateral5/norm/scale",
        "batch_stats/encoder/fpn/lateral5/norm/mean",
    ),
}
TARGET_OF = {"params/encoder/": "target_params/", "batch_stats/encoder/": "target_batch_stats/"}
# Buffers that some versions of the libraries write and nothing here needs.
NOT_LEARNED = (".num_batches_tracked", ".attn_mask", ".relative_position_index")
MOST_HEAD_CONVS = 10  # convolutions of a box head that are looked for


class Kind(NamedTuple):
    """What a file can hold.

    Attributes:
      words: for people.
      view: (networks, parts) -> the view.
      parts: which of architectures.PARTS there can be.
      swins: whether its backbone can be a Swin.
    """

    words: str
    view: Callable[[Architecture, tuple[str, ...]], View]
    parts: tuple[str, ...]
    swins: bool


class Imported(NamedTuple):
    """What a file gives to a run.

    Attributes:
      arrays: path in the state -> array in our layout.
      config: to go on with.
      notes: what the user should know.
    """

    arrays: dict[str, np.ndarray]
    config: Any
    notes: list[str]


def _classifier(library: classifiers.Library) -> Kind:
    view = lambda a, parts: classifiers.view(a, library, None)  # noqa: E731
    return Kind(f"{library.name} classifier", view, PARTS[:1], swins=True)


def _detector(library: str) -> Kind:
    view = lambda a, parts: detectors.view(a, library, parts)  # noqa: E731
    return Kind(f"{library} detector", view, PARTS, library == "mmdet")


# What each style of names is, by the origin: ResNets are called alike in torchvision and timm.
KINDS = {
    "torchvision": {
        "torchvision detector": _detector("torchvision"),
        **dict.fromkeys(
            ("resnet", "sequential", "torchvision swin"), _classifier(classifiers.TORCHVISION)
        ),
    },
    "timm": dict.fromkeys(
        ("resnet", "sequential", "first swin", "timm swin"), _classifier(classifiers.TIMM)
    ),
    "mmdet": dict.fromkeys(("mmdet", "mmdet swin"), _detector("mmdet")),
    "detectron2": {"detectron2": _detector("detectron2")},
}


def load(
    path: Path, origin: str, config: Any, *, adopt: bool, network: str | None = None
) -> tuple[TrainState, dict, list[str]]:
    """Reads a file of another library as a training state that has taken no step.

    What the file holds goes into the online and the target network; the rest is initialized as
    the configuration says.

    Args:
      path: the file, of any format in convert/files/content.py.
      origin: one of KINDS, or 'safetensors'.
      config: ConfigDict to go on with, checked against the file.
      adopt: first set the sizes in the config's section `model` to those of the file.
      network: which of several networks in the file, as convert/files/weights.py calls it.

    Returns:
      (state, meta for `checkpoint.write`, what the user should know).

    Raises:
      UserError: for a file that cannot be read or does not hold a network of the configuration.
    """
    if origin == "safetensors":
        return _load_safetensors(path, config, adopt)
    arrays, config, notes = read(path, origin, config, adopt=adopt, network=network)
    state = placed(fresh(config), arrays)
    notes.append(f"{len(arrays)} arrays placed; the rest is initialized with seed {config.seed}")
    meta = {"config": program.plain_config(config), "origin": f"{origin}:{path.name}"}
    return state, meta, notes


def read(
    path: Path, origin: str, config: Any, *, adopt: bool, network: str | None = None
) -> Imported:
    """`load` without the state around it: what of a network the file holds, in our layout."""
    found = weights.read(path, origin, network)
    kind, model = KINDS[origin][found.style], found.arrays
    backbone = _recognize(model, kind, path)
    a = from_config(program.plain_config(config))
    if adopt:
        config.model.update(_sizes(model, kind, backbone, a))
        a = from_config(program.plain_config(config))
    elif a.backbone != backbone:
        raise UserError(
            f"{path.name} holds a {backbone}, model.backbone is {a.backbone!r} in the configuration"
        )
    parts = _present(model, kind, a)
    view = _without_stage_norms(kind.view(a, parts), model)
    known = {name for name, e in view.named.items() for name in (name, *e.buffers)}
    _demand_no_more(found.backbone - known, a.backbone, path.name)
    subject = f"{path.name} does not hold a complete {a.backbone} ({', '.join(parts)})"
    arrays = view.from_file({name: x for name, x in model.items() if name in known}, subject)
    notes = [f"read {path.name}: {kind.words}, {a.backbone}, {', '.join(parts)}", *found.notes]
    if left := [name for name in model if name not in known]:
        notes.append(f"not read: {len(left)} arrays ({few(left)})")
    return Imported(arrays, config, notes)


def _recognize(model: Arrays, kind: Kind, path: Path) -> str:
    """The backbone whose names differ least from the file's.

    Names of any backbone count that the file has too many or too few; others do not.
    """
    best = None
    candidates = {backbone: _backbone_names(kind, backbone) for backbone in (*RESNETS, *SWINS)}
    there = set(model) & set().union(*candidates.values())
    for backbone, wanted in candidates.items():
        difference = len(wanted ^ there)
        if 2 * difference < len(wanted) and (best is None or difference < best[0]):
            best = difference, backbone
    if best is None:
        raise UserError(
            f"{path.name} holds no {kind.words} that is known here; it begins with {few(model)}; "
            f"known are {', '.join(candidates)}"
        )
    return best[1]


def _demand_no_more(others: Set[str], backbone: str, file: str) -> None:
    """UserError where blocks of the file have no place in a backbone: it is a part of the file's."""
    learned = [n for n in others if re.search(r"\.\d+\.", n) and not n.endswith(NOT_LEARNED)]
    if learned:
        raise UserError(
            f"{file} holds another network than {backbone}, the nearest that is known here: "
            f"{len(learned)} arrays of its backbone have no place in it ({few(sorted(learned))})"
        )


def _without_stage_norms(view: View, model: Arrays) -> View:
    """For a Swin of mmpretrain, a classifier: norms of res2 to res4 are a detector's alone."""
    norms = [e.name for e in view.entries if re.match(r"backbone\.norm[0-2]\.", e.name)]
    if any(name in model for name in norms):
        return view
    return replace(view, entries=tuple(e for e in view.entries if e.name not in norms))


def _backbone_names(kind: Kind, backbone: str) -> set[str]:
    """What a backbone's arrays are called; that does not depend on its width."""
    if backbone in SWINS and not kind.swins:
        return set()
    width = 32 if backbone in SWINS else 8
    a = Architecture(backbone, width, 8, 0, 8, 8, 8, "fpn", 0.0)
    return set(kind.view(a, PARTS[:1]).named)


def _sizes(model: Arrays, kind: Kind, backbone: str, given: Architecture) -> dict[str, Any]:
    """The keys of `config.model` that the file decides."""
    a = replace(given, backbone=backbone, head_convs=MOST_HEAD_CONVS)
    found = {"backbone": backbone}
    by_source = {e.source: model.get(e.name) for e in kind.view(a, kind.parts).entries}
    for key, sources in VECTORS.items():
        vectors = (by_source[source] for source in sources if by_source.get(source) is not None)
        if (vector := next(vectors, None)) is not None:
            found[key] = vector.size
    heads = [f"params/encoder/head/conv{n}/kernel" for n in range(1, MOST_HEAD_CONVS + 1)]
    if count := sum(by_source.get(source) is not None for source in heads):
        found["head_convs"] = count
    return found


def _present(model: Arrays, kind: Kind, a: Architecture) -> tuple[str, ...]:
    """Parts of which any array is there."""
    return tuple(part for part in kind.parts if set(kind.view(a, (part,)).named) & set(model))


def fresh(config: Any) -> TrainState:
    """The state that a run of this configuration starts from, as numpy."""
    return jax.tree.map(np.asarray, program.new_state(on_one_device(config)))


def placed(state: TrainState, arrays: Arrays) -> TrainState:
    """A state with these arrays, by their path, and those of the online encoder in the target too.

    Raises:
      UserError: for an array that the state does not have, or has in another shape.
    """
    flat = strict.flatten({name: getattr(state, name) for name in NETWORKS})
    placed = dict(arrays)
    for path, x in arrays.items():
        for online, target in TARGET_OF.items():
            copy = path.replace(online, target, 1)
            if path.startswith(online) and copy in flat:
                placed.setdefault(copy, x)
    expected = {path: flat[path].shape for path in placed if path in flat}
    strict.demand(strict.problems(placed, expected), "the file does not fit the configuration")
    trees = strict.unflatten(flat | placed)
    return state.replace(**{name: trees.get(name, {}) for name in NETWORKS})


def _load_safetensors(path: Path, config: Any, adopt: bool) -> tuple[TrainState, dict, list[str]]:
    """`load` of what `--to safetensors` wrote: all networks, with the file's own configuration."""
    ours = format_of(path) == "safetensors"
    arrays = formats.load_safetensors(path) if ours else {}
    about = formats.read_safetensors_about(path) if ours else {}
    if about.get("format") != "mcl_jax":
        raise UserError(
            f"{path.name} was not written by --to safetensors (its metadata has no format mcl_jax)"
        )
    try:
        method, step, own = about["method"], about["step"], json.loads(about["config"])
        if adopt:
            config.update(own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path.name} has no usable metadata (method, step, config): {one_line(error)}; give "
            "a file as --to safetensors wrote it"
        ) from error
    state = placed(fresh(config), arrays)
    missing = set(strict.flatten({n: getattr(state, n) for n in NETWORKS})) - set(arrays)
    strict.demand([f"missing {name}" for name in sorted(missing)], path.name)
    notes = [
        f"read {path.name}: {method}, step {step}, {len(arrays)} arrays",
        "the optimizer starts anew, at step 0: the file holds networks alone",
    ]
    return (
        state,
        {"config": program.plain_config(config), "origin": f"safetensors:{path.name}"},
        notes,
    )
