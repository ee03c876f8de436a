"""Export to MMDetection 3 (mmengine): a checkpoint for `load_from` and the configuration beside it.

Shapes: see convert/names/detectors.py.
"""

from mcl_jax.convert.export import ExportJob, Target
from mcl_jax.convert.files.formats import MMENGINE
from mcl_jax.convert.names import architectures, detectors
from mcl_jax.convert.targets.detectron2 import not_taken, untrained_levels
from mcl_jax.models.backbone import is_swin, stage_channels
from mcl_jax.models.resnet import blocks_of

CONFIG = """\
# Mask R-CNN {title}, 1x schedule, from mcl_jax weights. With MMDetection 3:
#   mim train mmdet THIS_FILE --gpus 8 --launcher pytorch
_base_ = "mmdet::{base}"

{norm}model = dict(
    backbone=dict({backbone}),
    neck=dict(in_channels={channels}, out_channels={fpn}{norm_of_part}),
    roi_head=dict(
        bbox_head=dict({head}),
        mask_head=dict(in_channels={fpn}{norm_of_part}),
    ),
)
load_from = {weights!r}
"""
NORM = 'norm_cfg = dict(type="SyncBN", requires_grad=True)\n'
# The base configurations freeze a stage and all statistics; here nothing is frozen. RGB and the
# stride in the 3x3 convolution (style "pytorch") are as in pre-training.
RESNET = (
    "depth={depth}, base_channels={width}, stem_channels={width}, frozen_stages=-1, "
    "norm_eval=False, norm_cfg={norm}, init_cfg=None"
)
SWIN = "embed_dims={width}, convert_weights=False, init_cfg=None"
CONV_HEAD = (
    'type="ConvFCBBoxHead", num_shared_convs={convs}, num_shared_fcs=1, '
    "in_channels={fpn}, conv_out_channels={fpn}{norm}"
)
NEW_HEAD = "in_channels={fpn}"  # no part of it is pre-trained: MMDetection's own


def files(job: ExportJob) -> dict[str, str]:
    """The fine-tuning configuration; as in the paper, synchronized BN and a head of convolutions."""
    a = job.architecture
    norm = "" if job.folded else ", norm_cfg=norm_cfg"
    if is_swin(a.backbone):
        title, base = "Swin-T-FPN", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
        backbone = SWIN.format(width=a.width)
    else:
        depth = int(a.backbone.removeprefix("resnet"))
        title, base = f"R{depth}-FPN", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
        frozen = 'dict(type="BN", requires_grad=True)' if job.folded else "norm_cfg"
        backbone = RESNET.format(depth=depth, width=a.width, norm=frozen)
    head = CONV_HEAD if "head" in job.parts else NEW_HEAD
    text = CONFIG.format(
        title=title,
        base=base,
        norm="" if job.folded else NORM,
        backbone=backbone,
        channels=list(stage_channels(a)),
        fpn=a.fpn_channels,
        norm_of_part=norm,
        head=head.format(convs=a.head_convs, fpn=a.fpn_channels, norm=norm),
        weights=str(job.weights),
    )
    return {f"mask-rcnn_{a.backbone}_fpn_1x_coco.py": text}


def notes(job: ExportJob) -> list[str]:
    a = job.architecture
    lines = untrained_levels(job)
    if not is_swin(a.backbone) and not blocks_of(a.backbone)[1] and a.width != 64:
        lines.append(
            f"this {a.backbone} has width {a.width}: base_channels in the configuration says so"
        )
    return lines


def models(job: ExportJob) -> dict[str, dict[str, str]]:
    scratch = [part for part in architectures.PARTS if part not in job.parts]
    scratch += ["RPN", "box fc and predictors", "mask head"]
    words = {"loads": ", ".join(job.parts), "from_scratch": ", ".join(scratch)}
    return {"MaskRCNN (the configuration beside the weights)": words}


TARGET = Target(
    name="mmdet",
    format=MMENGINE,
    stem=lambda a, parts: f"mmdet_{a.backbone}",
    parts=architectures.PARTS,
    default="all",
    demand=lambda job: None,
    layout=lambda job: detectors.layout(
        job.architecture, "mmdet", parts=job.parts, folded=job.folded
    ),
    files=files,
    notes=notes,
    models=models,
    reasons=not_taken,
)
