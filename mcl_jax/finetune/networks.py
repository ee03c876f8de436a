"""torchvision's v2 detectors for ResNet-18, 34 and 50, with the norms of the pre-trained networks.

Shapes: images [3, H, W] float32 RGB in [0, 1], which the detector normalizes itself.

Norms are the same in every run, whatever it starts from: batch norms in backbone, FPN and box head
(and mask head), trained, with the statistics of the batch; nothing is frozen. RetinaNet's subnets
have torchvision's group norms; torchvision has no norms in its FPN, this one has those of the others.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from mcl_jax.errors import UserError
from mcl_jax.finetune.names import Match
from mcl_jax.finetune.settings import GROUPS, FinetuneSettings

ROI_SIZE, MASK_ROI_SIZE = 7, 14  # px of a pooled region
CANONICAL_ANCHORS = 7  # a region of so many smallest anchors (224 px of 32) is pooled from P4
LEVELS = 5  # that have anchors: P2 to P6, RetinaNet P3 to P7
RATIOS = (0.5, 1.0, 2.0)
BETA2 = 0.999  # of AdamW
NORMS = (nn.BatchNorm2d, nn.GroupNorm)


def build(settings: FinetuneSettings, classes: int) -> nn.Module:
    """A detector with new weights, drawn from torch's current random state.

    Args:
      settings: of the run.
      classes: of objects, the background not counted. Labels are 1 to `classes`, as torchvision's
        R-CNNs count; RetinaNet has an output 0 that nothing uses, as torchvision's own.
    """
    if settings.detector == "retinanet":
        return _retinanet(settings, classes + 1)
    c = settings.fpn_channels
    anchors = AnchorGenerator(
        tuple((settings.smallest_anchor * 2**i,) for i in range(LEVELS)), (RATIOS,) * LEVELS
    )
    heads = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(c, len(RATIOS), conv_depth=2),
        "box_roi_pool": _pool(settings, ROI_SIZE),
        "box_head": FastRCNNConvFCHead(
            (c, ROI_SIZE, ROI_SIZE),
            [c] * settings.head_convs,
            [settings.head_features],
            norm_layer=nn.BatchNorm2d,
        ),
        "box_predictor": FastRCNNPredictor(settings.head_features, classes + 1),
        "rpn_pre_nms_top_n_train": settings.proposals_train,
        "rpn_post_nms_top_n_train": settings.proposals_train,
        "rpn_pre_nms_top_n_test": settings.proposals_test,
        "rpn_post_nms_top_n_test": settings.proposals_test,
        "box_score_thresh": settings.score_threshold,
        "box_nms_thresh": settings.nms_iou,
        "box_detections_per_img": settings.max_detections,
        "box_batch_size_per_image": settings.roi_batch,
    }
    if settings.detector == "fasterrcnn":
        return FasterRCNN(_backbone(settings), **heads, **_sizes(settings))
    return MaskRCNN(
        _backbone(settings),
        **heads,
        **_sizes(settings),
        mask_roi_pool=_pool(settings, MASK_ROI_SIZE),
        mask_head=MaskRCNNHeads(c, [c] * 4, 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(c, c, classes + 1),
    )


def _retinanet(settings: FinetuneSettings, outputs: int) -> nn.Module:
    c, side = settings.fpn_channels, settings.smallest_anchor
    thirds = (0, 1 / 3, 2 / 3)
    sizes = tuple(tuple(int(side * 2**i * 2**t) for t in thirds) for i in range(LEVELS))
    norm = partial(nn.GroupNorm, GROUPS)
    head = RetinaNetHead(c, len(thirds) * len(RATIOS), outputs, norm_layer=norm)
    head.regression_head._loss_type = "giou"  # as retinanet_resnet50_fpn_v2 does
    return RetinaNet(
        _backbone(settings),
        outputs,
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_iou,
        detections_per_img=settings.max_detections,
        **_sizes(settings),
    )


def _backbone(settings: FinetuneSettings) -> nn.Module:
    """ResNet and FPN: P2 to P6 of an R-CNN, P3 to P7 of RetinaNet."""
    trunk = getattr(resnet, settings.backbone)(weights=None, norm_layer=nn.BatchNorm2d)
    top, c = trunk.inplanes, settings.fpn_channels
    is_retinanet = settings.detector == "retinanet"
    stages = (2, 3, 4) if is_retinanet else (1, 2, 3, 4)
    return BackboneWithFPN(
        trunk,
        {f"layer{stage}": str(i) for i, stage in enumerate(stages)},
        [top // 2 ** (4 - stage) for stage in stages],
        c,
        extra_blocks=LastLevelP6P7(top, c) if is_retinanet else LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d,
    )


def _pool(settings: FinetuneSettings, size: int) -> nn.Module:
    return MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        size,
        sampling_ratio=2,
        canonical_scale=CANONICAL_ANCHORS * settings.smallest_anchor,
    )


def _sizes(settings: FinetuneSettings) -> dict[str, object]:
    return {"min_size": settings.min_sizes, "max_size": settings.max_size}


def shapes(detector: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a detector stores."""
    return {name: tuple(x.shape) for name, x in detector.state_dict().items()}


def load(detector: nn.Module, arrays: Mapping[str, np.ndarray], match: Match) -> None:
    """Puts a file's arrays into their places.

    Raises:
      UserError: an array is not finite.
    """
    for theirs in match.names.values():
        if count := np.count_nonzero(~np.isfinite(arrays[theirs])):
            raise UserError(f"the weights have {count} values that are not finite in {theirs}")
    tensors = {name: torch.from_numpy(arrays[theirs]) for name, theirs in match.names.items()}
    detector.load_state_dict(tensors, strict=False)


def optimizer(detector: nn.Module, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; norms have no weight decay, as in Detectron2."""
    of_norms = {id(x) for m in detector.modules() if isinstance(m, NORMS) for x in m.parameters()}
    trained = [x for x in detector.parameters() if x.requires_grad]
    groups = [
        {"params": [x for x in trained if id(x) not in of_norms]},
        {"params": [x for x in trained if id(x) in of_norms], "weight_decay": 0.0},
    ]
    lr, decay = settings.base_lr, settings.weight_decay
    if settings.optimizer == "adamw":
        betas = (settings.momentum, BETA2)
        return torch.optim.AdamW(groups, lr, betas=betas, weight_decay=decay)
    return torch.optim.SGD(groups, lr, momentum=settings.momentum, weight_decay=decay)
