"""What of a detector's parameters weights could fill, foreseen from the configuration.

So `--check` needs no Detectron2. Where it is installed, the model itself is asked instead.
Shapes: OIHW and [C], by Detectron2's names.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

from collections.abc import Iterator, Mapping
from typing import Any

from mcl_jax.convert.checks.detectron2_check import DEPTHS
from mcl_jax.errors import UserError

Shapes = dict  # name -> shape
BACKBONES = {  # name -> (what stands before its parameters, whether an FPN is on top)
    "build_resnet_backbone": ("backbone.", False),
    "build_resnet_fpn_backbone": ("backbone.bottom_up.", True),
    "build_retinanet_resnet_fpn_backbone": ("backbone.bottom_up.", True),
}
STATISTICS = ("running_mean", "running_var")
BATCH_NORMS = ("BN", "SyncBN", "FrozenBN", "naiveSyncBN", "nnSyncBN", "naiveSyncBN_N")
RES5_BLOCKS = 3  # of a C4 head, whatever the depth


def parts(settings: Mapping[str, Any]) -> Shapes | None:
    """Backbone, FPN and the box head's convolutions of a configuration.

    Args:
      settings: see configuration.read.

    Returns:
      Name -> shape; None for a backbone that is not one of BACKBONES.

    Raises:
      UserError: for a depth that Detectron2 does not have.
    """
    name = settings["MODEL.BACKBONE.NAME"]
    if name not in BACKBONES:
        return None
    depth = settings["MODEL.RESNETS.DEPTH"]
    if depth not in DEPTHS:
        raise UserError(
            f"MODEL.RESNETS.DEPTH is {depth}, must be one of {', '.join(map(str, DEPTHS))}"
        )
    prefix, has_fpn = BACKBONES[name]
    shapes = dict(_resnet(settings, prefix))
    if has_fpn:
        shapes.update(_fpn(settings))
    if settings["MODEL.META_ARCHITECTURE"] in ("GeneralizedRCNN", "PanopticFPN"):
        if "Res5" in settings["MODEL.ROI_HEADS.NAME"]:
            shapes.update(
                _stage(settings, "roi_heads.res5.", i=3, blocks=RES5_BLOCKS, bottleneck=True)
            )
        elif settings["MODEL.ROI_BOX_HEAD.NAME"] == "FastRCNNConvFCHead" and has_fpn:
            shapes.update(_box_head(settings))
    return shapes


def _layer(
    name: str, shape: tuple, norm: str, *, bias: bool = False
) -> Iterator[tuple[str, tuple]]:
    """A convolution and its norm; `bias` where there is no norm."""
    yield f"{name}.weight", shape
    if bias and not norm:
        yield f"{name}.bias", shape[:1]
    if norm:
        statistics = STATISTICS if norm in BATCH_NORMS else ()
        for leaf in ("weight", "bias", *statistics):
            yield f"{name}.norm.{leaf}", shape[:1]


def _resnet(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, tuple]]:
    """Stem and the stages up to the last that is asked for."""
    stem = settings["MODEL.RESNETS.STEM_OUT_CHANNELS"]
    yield from _layer(f"{prefix}stem.conv1", (stem, 3, 7, 7), settings["MODEL.RESNETS.NORM"])
    blocks, bottleneck = DEPTHS[settings["MODEL.RESNETS.DEPTH"]]
    last = max(
        (int(x[3:]) for x in settings["MODEL.RESNETS.OUT_FEATURES"] if x[:3] == "res"), default=5
    )
    for i in range(last - 1):
        yield from _stage(
            settings, f"{prefix}res{i + 2}.", i=i, blocks=blocks[i], bottleneck=bottleneck
        )


def _stage(
    settings: Mapping[str, Any], prefix: str, i: int, blocks: int, *, bottleneck: bool
) -> Iterator[tuple[str, tuple]]:
    """The blocks of stage res(i+2)."""
    norm = settings["MODEL.RESNETS.NORM"]
    groups = settings["MODEL.RESNETS.NUM_GROUPS"]
    inner = groups * settings["MODEL.RESNETS.WIDTH_PER_GROUP"] * 2**i
    width = settings["MODEL.RESNETS.RES2_OUT_CHANNELS"] * 2**i
    before = width // 2 if i else settings["MODEL.RESNETS.STEM_OUT_CHANNELS"]
    for block in range(blocks):
        name = f"{prefix}{block}"
        if before != width:
            yield from _layer(f"{name}.shortcut", (width, before, 1, 1), norm)
        if bottleneck:
            yield from _layer(f"{name}.conv1", (inner, before, 1, 1), norm)
            yield from _layer(f"{name}.conv2", (inner, inner // groups, 3, 3), norm)
            yield from _layer(f"{name}.conv3", (width, inner, 1, 1), norm)
        else:
            yield from _layer(f"{name}.conv1", (width, before, 3, 3), norm)
            yield from _layer(f"{name}.conv2", (width, width, 3, 3), norm)
        before = width


def _fpn(settings: Mapping[str, Any]) -> Iterator[tuple[str, tuple]]:
    norm, channels = settings["MODEL.FPN.NORM"], settings["MODEL.FPN.OUT_CHANNELS"]
    for feature in settings["MODEL.FPN.IN_FEATURES"]:
        stage = int(feature.removeprefix("res"))
        width = settings["MODEL.RESNETS.RES2_OUT_CHANNELS"] * 2 ** (stage - 2)
        yield from _layer(f"backbone.fpn_lateral{stage}", (channels, width, 1, 1), norm, bias=True)
        yield from _layer(
            f"backbone.fpn_output{stage}", (channels, channels, 3, 3), norm, bias=True
        )


def _box_head(settings: Mapping[str, Any]) -> Iterator[tuple[str, tuple]]:
    """The convolutions; linear layers are new in every fine-tuning."""
    norm, channels = settings["MODEL.ROI_BOX_HEAD.NORM"], settings["MODEL.ROI_BOX_HEAD.CONV_DIM"]
    before = settings["MODEL.FPN.OUT_CHANNELS"]
    for i in range(settings["MODEL.ROI_BOX_HEAD.NUM_CONV"]):
        name = f"roi_heads.box_head.conv{i + 1}"
        yield from _layer(name, (channels, before, 3, 3), norm, bias=True)
        before = channels
