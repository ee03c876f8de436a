"""The loader that goes with an export for torchvision's detectors, for any ResNet and FPN.

Shapes: see convert/names/detectors.py.
"""

from mcl_jax.convert.export import ExportJob
from mcl_jax.convert.names.classifiers import STOCK_WIDTH

STOCK = ("resnet50", 256, 4)  # of maskrcnn_resnet50_fpn_v2: backbone, FPN channels, convolutions
# Of the folded file, torchvision's first version, as far as the file goes.
STOCK_FOLDED = ("resnet50", 256)

LOADER = '''\
"""Builds torchvision's Mask R-CNN v2 on a {backbone} with the weights of {weights}.

    from load_torchvision import model

For other detectors, training and AP: scripts/finetune_torchvision.py of mcl_jax.
"""

from pathlib import Path

import torch
import torchvision
from torch.nn import BatchNorm2d
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

CLASSES = 91  # with the background, as COCO counts
CHANNELS = {channels}  # of FPN and heads
trunk = torchvision.models.{backbone}()
layers = {{f"layer{{i}}": str(i - 1) for i in (1, 2, 3, 4)}}
inputs = [trunk.inplanes // divisor for divisor in (8, 4, 2, 1)]
backbone = BackboneWithFPN(trunk, layers, inputs, CHANNELS, norm_layer=BatchNorm2d)
model = MaskRCNN(
    backbone,
    rpn_anchor_generator=AnchorGenerator(
        ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
    ),
    rpn_head=RPNHead(CHANNELS, 3, conv_depth=2),
    box_head=FastRCNNConvFCHead(
        (CHANNELS, 7, 7), [CHANNELS] * {convs}, [1024], norm_layer=BatchNorm2d
    ),
    box_predictor=FastRCNNPredictor(1024, CLASSES),
    mask_head=MaskRCNNHeads(CHANNELS, [CHANNELS] * 4, 1, norm_layer=BatchNorm2d),
    mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES),
)
state = torch.load(Path(__file__).with_name("{weights}"), weights_only=True)
missing, unexpected = model.load_state_dict(state, strict=False)
# What starts from scratch, and nothing else:
SCRATCH = {scratch}
wrong = [name for name in missing if not name.startswith(SCRATCH)] + unexpected
assert not wrong, wrong
'''


def stock_name(job: ExportJob) -> str | None:
    """The constructor of torchvision that builds what the file is for; None: it has none."""
    a = job.architecture
    if job.folded:
        fits = (a.backbone, a.fpn_channels) == STOCK_FOLDED and a.width == STOCK_WIDTH[False]
        return "maskrcnn_resnet50_fpn" if fits else None
    fits = (a.backbone, a.fpn_channels, a.head_convs) == STOCK and a.width == STOCK_WIDTH[False]
    return "maskrcnn_resnet50_fpn_v2" if fits else None


def builds(job: ExportJob) -> str:
    """What builds the detector, in Python or in words."""
    if name := stock_name(job):
        return f"torchvision.models.detection.{name}(weights=None, weights_backbone=None)"
    a = job.architecture
    version = "first version" if job.folded else "v2"
    return (
        f"torchvision's Mask R-CNN ({version}) on {a.backbone}, width {a.width}, with "
        f"{a.fpn_channels} FPN channels"
    )


def scratch(job: ExportJob) -> tuple[str, ...]:
    """How the names begin of what starts from scratch."""
    a = job.architecture
    of_regions = ("rpn.", "roi_heads.")
    if "head" in job.parts:
        linear = f"roi_heads.box_head.{a.head_convs + 1}."  # behind the convolutions and a Flatten
        of_regions = ("rpn.", linear, "roi_heads.box_predictor.", "roi_heads.mask_")
    missing = tuple(
        prefix
        for part, prefix in (("backbone", "backbone.body."), ("fpn", "backbone.fpn."))
        if part not in job.parts
    )
    return (*missing, *of_regions)


def loader(job: ExportJob) -> str | None:
    """load_torchvision.py for a network that no constructor of torchvision builds; None: no way."""
    a = job.architecture
    if job.folded or a.width != STOCK_WIDTH[False]:
        return None
    return LOADER.format(
        backbone=a.backbone,
        weights=job.weights.name,
        channels=a.fpn_channels,
        convs=a.head_convs,
        scratch=scratch(job),
    )


def note(job: ExportJob) -> list[str]:
    """How scripts/finetune_torchvision.py builds a detector of these sizes."""
    a = job.architecture
    if job.folded or a.width != STOCK_WIDTH[False] or "backbone" not in job.parts:
        return []
    flags = {"backbone": a.backbone, "fpn_channels": a.fpn_channels, "head_convs": a.head_convs}
    words = " ".join(f"--{flag} {value}" for flag, value in flags.items())
    return [f"scripts/finetune_torchvision.py --weights {job.weights.parent} {words}"]
