"""The fine-tuning configuration that is written beside the weights: the detector that they serve.

Mask R-CNN R50-FPN, 1x, as the authors of MCL fine-tune (paper section 4.2 and appendix): a box
head of 4 convolutions and 1 linear layer, synchronized BN everywhere, nothing frozen, RGB. A
backbone alone (BYOL, MoCo, DetCo, classifiers, neck C4) fills a C4 detector to the last array.
Keys and types are Detectron2 0.6's; the files are complete without a `_BASE_`.
"""

import json
from collections.abc import Sequence

from mcl_jax.models.backbone import Architecture
from mcl_jax.models.resnet import blocks_of

START = """\
# Mask R-CNN {title}, 1x schedule, from mcl_jax weights. Run it with Detectron2's own
#   tools/train_net.py --config-file THIS_FILE --num-gpus 8{comments}
VERSION: 2
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: {weights}
  MASK_ON: True
  # ImageNet statistics in RGB order: Detectron2 does not reorder them when INPUT.FORMAT changes.
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE:
    NAME: {builder}
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {depth}
    OUT_FEATURES: {features}
    STEM_OUT_CHANNELS: {width}
    WIDTH_PER_GROUP: {width}
    RES2_OUT_CHANNELS: {res2}
    NORM: SyncBN
    # The stride is in the 3x3 convolution; True loads without complaint and computes nonsense.
    STRIDE_IN_1X1: False
"""
FPN = """\
  FPN:
    IN_FEATURES: [res2, res3, res4, res5]
    OUT_CHANNELS: {fpn}
    NORM: {norm}
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
{head}
    POOLER_RESOLUTION: 7
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 4
    NORM: SyncBN
    POOLER_RESOLUTION: 14
"""
CONV_HEAD = """\
    NUM_CONV: {convs}
    CONV_DIM: {fpn}
    NUM_FC: 1
    NORM: {norm}"""
# No part of it is pre-trained: Detectron2's own for FPN.
NEW_HEAD = """\
    NUM_FC: 2"""
C4 = """\
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: Res5ROIHeads
"""
END = """\
INPUT:
  FORMAT: RGB
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (60000, 80000)
  MAX_ITER: 90000
TEST:
  PRECISE_BN:
    ENABLED: True
"""
PAPERS_C4 = (
    "The papers' C4 has one more norm behind res5: for their rows run",
    "scripts/finetune_detectron2.py with configs/detectron2/coco_mask_rcnn_c4_1x.yaml",
)


def limits(a: Architecture) -> list[str]:
    """Reasons why stock Detectron2 cannot build this network, in words; empty if it can."""
    _, bottleneck = blocks_of(a.backbone)
    if bottleneck or a.width == 64:
        return []
    return [
        f"Detectron2 builds ResNet-18/34 only with RES2_OUT_CHANNELS 64; this {a.backbone} has "
        f"{a.width}: remove that assertion (build_resnet_backbone) or pre-train with model.width 64"
    ]


def is_c4(a: Architecture, parts: Sequence[str]) -> bool:
    """Whether weights are best served by a C4 detector.

    Its head is a stage of bottlenecks, whatever the depth: ResNet-18 and 34 have no such thing.
    """
    _, bottleneck = blocks_of(a.backbone)
    return tuple(parts) == ("backbone",) and bottleneck


def name(a: Architecture, parts: Sequence[str]) -> str:
    """Of the file: 'mask_rcnn_R_50_FPN_1x.yaml'."""
    depth = a.backbone.removeprefix("resnet")
    return f"mask_rcnn_R_{depth}_{'C4' if is_c4(a, parts) else 'FPN'}_1x.yaml"


def text(a: Architecture, weights: str, parts: Sequence[str], *, folded: bool = False) -> str:
    """The YAML.

    Args:
      a: the pre-trained networks.
      weights: path of the .pkl as Detectron2 is to open it.
      parts: what the .pkl holds of architectures.PARTS.
      folded: FPN and box head have biases instead of norms.
    """
    _, bottleneck = blocks_of(a.backbone)
    depth = int(a.backbone.removeprefix("resnet"))
    c4 = is_c4(a, parts)
    comments = [f"WARNING: {limit}" for limit in limits(a)] + list(PAPERS_C4 if c4 else ())
    channels = a.fpn_channels if {"fpn", "head"} & set(parts) else 256  # Detectron2's own
    norm = '""' if folded and "fpn" in parts else "SyncBN"
    head = NEW_HEAD
    if "head" in parts:
        head = CONV_HEAD.format(
            convs=a.head_convs, fpn=a.fpn_channels, norm='""' if folded else "SyncBN"
        )
    return "".join(
        (
            START.format(
                title=f"R{depth}-{'C4' if c4 else 'FPN'}",
                comments="".join(f"\n# {line}" for line in comments),
                weights=json.dumps(weights, ensure_ascii=False),
                builder="build_resnet_backbone" if c4 else "build_resnet_fpn_backbone",
                depth=depth,
                features="[res4]" if c4 else "[res2, res3, res4, res5]",
                width=a.width,
                res2=a.width * (4 if bottleneck else 1),
            ),
            C4 if c4 else FPN.format(fpn=channels, norm=norm, head=head),
            END,
        )
    )
