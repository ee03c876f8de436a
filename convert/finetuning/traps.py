"""The traps of a configuration: what trains without complaint, but another network than the weights."""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class Holding(NamedTuple):
    """What weights have that a configuration has to fit.

    Attributes:
      fpn_norms: whether the FPN has norms, and not folded biases.
      head_convs: convolutions of the box head; 0 where there is no head.
      head_norms: whether they have norms.
    """

    fpn_norms: bool
    head_convs: int
    head_norms: bool


PAPER = Holding(fpn_norms=True, head_convs=4, head_norms=True)
CONTROL = Holding(fpn_norms=True, head_convs=0, head_norms=False)  # brings no head of its own


def holding(names: Iterable[str]) -> Holding:
    """What a file has, by its names, short or long."""
    names = list(names)
    convs = {match[1] for name in names if (match := re.search(r"box_head\.conv(\d+)\.", name))}
    return Holding(
        fpn_norms=not any(re.search(r"fpn_[a-z]+\d\.bias$", name) for name in names),
        head_convs=len(convs),
        head_norms=any(re.search(r"box_head\.conv\d+\.norm\.", name) for name in names),
    )


def find(settings: Mapping[str, Any], holds: Holding = PAPER) -> list[str]:
    """What of a configuration makes Detectron2 train something else than the weights are, in words.

    Args:
      settings: see configuration.read.
      holds: what the weights have. With folded norms they have biases instead, and a configuration
        without norms is right for them.
    """
    lines = []

    def demand(key: str, right: Any, why: str) -> None:
        if settings[key] != right:
            lines.append(f"{key} is {settings[key]!r}, must be {right!r}: {why}")

    regions = settings["MODEL.META_ARCHITECTURE"] in ("GeneralizedRCNN", "PanopticFPN")
    standard = regions and settings["MODEL.ROI_HEADS.NAME"] == "StandardROIHeads"
    unlike = "the pre-trained network is another one, though it loads without complaint"
    if settings["MODEL.RESNETS.DEPTH"] >= 50:
        demand("MODEL.RESNETS.STRIDE_IN_1X1", right=False, why=unlike)
    demand("INPUT.FORMAT", "RGB", "pre-training saw RGB")
    demand("MODEL.PIXEL_MEAN", MEAN, "ImageNet's in RGB order; the format does not reorder it")
    demand("MODEL.PIXEL_STD", STD, "ImageNet's in RGB order")
    demand("MODEL.BACKBONE.FREEZE_AT", 0, "the paper freezes nothing")
    norms = ["RESNETS"]
    if "fpn" in settings["MODEL.BACKBONE.NAME"] and holds.fpn_norms:
        norms.append("FPN")
    if standard and holds.head_convs:
        head = f"the pre-trained box head has {holds.head_convs} convolutions and one linear layer"
        demand("MODEL.ROI_BOX_HEAD.NUM_CONV", holds.head_convs, head)
        demand("MODEL.ROI_BOX_HEAD.NUM_FC", 1, head)
        if holds.head_norms:
            norms.append("ROI_BOX_HEAD")
    for part in norms:
        demand(f"MODEL.{part}.NORM", "SyncBN", "as in pre-training; others lose its statistics")
    if standard and settings["MODEL.MASK_ON"]:
        demand(
            "MODEL.ROI_MASK_HEAD.NORM", "SyncBN", "the paper's mask head has norms like the rest"
        )
    why = "statistics of the last steps alone cost AP"
    demand("TEST.PRECISE_BN.ENABLED", right=True, why=why)
    return lines
