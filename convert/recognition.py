"""Which of our networks a file of another library holds, by names and shapes.

Shapes: as the library's layout says; a *model* is name -> array.
"""

import re
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mcl_jax.convert.files.formats import Arrays
from mcl_jax.convert.files.refusals import few
from mcl_jax.convert.names import classifiers, detectors
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.layouts import FileLayout
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.resnet import ARCHITECTURES as RESNETS
from mcl_jax.models.swin import ARCHITECTURES as SWINS

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
        "params/encoder/head/conv1/norm/bias",  # of a file without an FPN that is ours
        "params/encoder/head/conv1/norm/scale",
    ),
}
# Buffers that some versions of the libraries write and nothing here needs.
NOT_LEARNED = (".num_batches_tracked", ".attn_mask", ".relative_position_index")
MOST_HEAD_CONVS = 10  # convolutions of a box head that are looked for


class Kind(NamedTuple):
    """What a file can hold.

    Attributes:
      words: for people.
      layout: (networks, parts) -> the layout.
      parts: which of architectures.PARTS there can be.
      swins: whether its backbone can be a Swin.
    """

    words: str
    layout: Callable[[Architecture, tuple[str, ...]], FileLayout]
    parts: tuple[str, ...]
    swins: bool


def _classifier(library: classifiers.Library) -> Kind:
    layout = lambda a, parts: classifiers.layout(a, library, classes=None)  # noqa: E731
    return Kind(f"{library.name} classifier", layout, parts=PARTS[:1], swins=True)


def _detector(library: str) -> Kind:
    layout = lambda a, parts: detectors.layout(a, library, parts=parts)  # noqa: E731
    return Kind(f"{library} detector", layout, parts=PARTS, swins=library == "mmdet")


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


def recognize(model: Arrays, kind: Kind, path: Path) -> str:
    """The backbone whose names differ least from the file's.

    Names of any backbone count that the file has too many or too few; others do not.
    """
    best = None
    candidates = {backbone: _backbone_names(kind, backbone) for backbone in (*RESNETS, *SWINS)}
    names = set(model) & set().union(*candidates.values())
    for backbone, expected in candidates.items():
        difference = len(expected ^ names)
        if 2 * difference < len(expected) and (best is None or difference < best[0]):
            best = difference, backbone
    if best is None:
        raise UserError(
            f"{path.name} holds no {kind.words} that is known here; it begins with {few(model)}; "
            f"known are {', '.join(candidates)}"
        )
    return best[1]


def demand_no_more(others: Set[str], backbone: str, file: str) -> None:
    """UserError where blocks of the file have no place in a backbone: it is a part of the file's."""
    learned = [n for n in others if re.search(r"\.\d+\.", n) and not n.endswith(NOT_LEARNED)]
    if learned:
        raise UserError(
            f"{file} holds another network than {backbone}, the nearest that is known here: "
            f"{len(learned)} arrays of its backbone have no place in it ({few(sorted(learned))})"
        )


def without_stage_norms(layout: FileLayout, model: Arrays) -> FileLayout:
    """For a Swin of mmpretrain, a classifier: norms of res2 to res4 are a detector's alone."""
    norms = [e.name for e in layout.entries if re.match(r"backbone\.norm[0-2]\.", e.name)]
    if any(name in model for name in norms):
        return layout
    return replace(layout, entries=tuple(e for e in layout.entries if e.name not in norms))


def _backbone_names(kind: Kind, backbone: str) -> set[str]:
    """What a backbone's arrays are called; that does not depend on its width."""
    if backbone in SWINS and not kind.swins:
        return set()
    width = 32 if backbone in SWINS else 8
    a = Architecture(
        backbone,
        width,
        fpn_channels=8,
        head_convs=0,
        projector_hidden=8,
        projector_out=8,
        predictor_hidden=8,
        neck="fpn",
        drop_path=0.0,
    )
    return set(kind.layout(a, PARTS[:1]).named)


def sizes(model: Arrays, kind: Kind, backbone: str, defaults: Architecture) -> dict[str, Any]:
    """The keys of `config.model` that the file decides."""
    a = replace(defaults, backbone=backbone, head_convs=MOST_HEAD_CONVS)
    result = {"backbone": backbone}
    by_source = {e.source: model.get(e.name) for e in kind.layout(a, kind.parts).entries}
    for key, sources in VECTORS.items():
        vectors = (by_source[source] for source in sources if by_source.get(source) is not None)
        if (vector := next(vectors, None)) is not None:
            result[key] = vector.size
    heads = [f"params/encoder/head/conv{n}/kernel" for n in range(1, MOST_HEAD_CONVS + 1)]
    if count := sum(by_source.get(source) is not None for source in heads):
        result["head_convs"] = count
    return result


def parts_of(model: Arrays, kind: Kind, a: Architecture) -> tuple[list[str], list[str]]:
    """(parts that the file has, parts that it has in another form: without norms or with a level less).

    A part of which single arrays are missing is one that it has: what reads it names them.
    """
    complete_parts, other_parts = [], []
    for part in kind.parts:
        entries = kind.layout(a, (part,)).named
        sources = {e.source for name, e in entries.items() if name in model}
        missing = {e.source for e in entries.values()} - sources
        if sources:
            odd = part != PARTS[0] and missing and _is_another_form(sources, missing)
            (other_parts if odd else complete_parts).append(part)
    return complete_parts, other_parts


def _is_another_form(sources: Set[str], missing: Set[str]) -> bool:
    """Whether whole modules are missing, or all norms: so are FPNs of stock detectors."""
    modules = {path.split("/")[3] for path in sources}  # params/encoder/fpn/lateral5/kernel
    norms = any("/norm/" in path for path in sources)
    return all(
        path.split("/")[3] not in modules or ("/norm/" in path and not norms) for path in missing
    )
