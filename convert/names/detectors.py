"""Detectors: backbone, FPN and box head under the names of Detectron2, MMDetection and torchvision.

Shapes: as in convert/names/table.py; i counts pyramid levels from P2, or the head's convolutions from 0.
"""

# ruff: noqa: E501
import re
from collections.abc import Sequence

from mcl_jax.convert.names import swin, table
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.classifiers import with_counter
from mcl_jax.convert.names.views import Entry, View, roots
from mcl_jax.models.backbone import Architecture, is_swin

LIBRARIES = ("detectron2", "mmdet", "torchvision")

# fmt: off
# the authors' code, behind encoder_q.    MMDetection                                 torchvision's detectors
PREFIXES = (
    (r"0\.",                           r"backbone.",                               r"backbone.body."),
    (r"1\.lateral_convs\.(\d)\.conv",  r"neck.lateral_convs.\1.conv",              r"backbone.fpn.inner_blocks.\1.0"),
    (r"1\.lateral_convs\.(\d)\.bn",    r"neck.lateral_convs.\1.bn",                r"backbone.fpn.inner_blocks.\1.1"),
    (r"1\.fpn_convs\.(\d)\.conv",      r"neck.fpn_convs.\1.conv",                  r"backbone.fpn.layer_blocks.\1.0"),
    (r"1\.fpn_convs\.(\d)\.bn",        r"neck.fpn_convs.\1.bn",                    r"backbone.fpn.layer_blocks.\1.1"),
    (r"2\.cls_convs\.(\d)\.conv",      r"roi_head.bbox_head.shared_convs.\1.conv", r"roi_heads.box_head.\1.0"),
    (r"2\.cls_convs\.(\d)\.bn",        r"roi_head.bbox_head.shared_convs.\1.bn",   r"roi_heads.box_head.\1.1"),
)
# fmt: on


def view(a: Architecture, library: str, parts: Sequence[str] = PARTS, folded: bool = False) -> View:
    """These parts of the online encoder.

    Args:
      a: the networks; Swin for 'mmdet' alone.
      library: one of LIBRARIES.
      parts: some of architectures.PARTS.
      folded: FPN and head have no norms, and biases instead: see transform.fold.
    """
    entries = []
    if is_swin(a.backbone) and "backbone" in parts:
        entries = [_of_swin(row) for row in swin.rows(a)]
    for t in table.online(a):
        part = t.source.split("/")[2]
        if part in parts:
            entry = _entry(t, library)
            if not folded or part == "backbone":
                entries.append(entry)
            elif entry.source.endswith("/kernel"):
                bias = entry.name.removesuffix("weight") + "bias"
                source = t.source.removesuffix("kernel") + "bias"
                entries += [entry, Entry(source, t.shape[-1:], bias)]
    return View(tuple(entries), roots(*parts))


def _entry(t: table.Tensor, library: str) -> Entry:
    if library == "detectron2":
        return Entry(t.source, t.shape, t.detectron2)
    column = LIBRARIES.index(library)
    for row in PREFIXES:
        name, found = re.subn(rf"^encoder_q\.{row[0]}", row[column], t.authors)
        if found:
            return with_counter(t, name)
    raise ValueError(f"no name of {t.authors} in {library}")


def _of_swin(row: swin.Row) -> Entry:
    name = f"backbone.{row.mmdet}"
    if name.endswith(swin.BIAS_TABLE):
        index = name.removesuffix(swin.BIAS_TABLE) + swin.INDEX
        return Entry(row.source, row.shape, name, "same", {index: swin.position_index(row)})
    return Entry(row.source, row.shape, name, "unfold" if row.merges else "torch")
