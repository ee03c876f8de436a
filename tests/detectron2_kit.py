"""Where the files for a fine-tuning in Detectron2 lie."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
KIT = ROOT / "configs" / "detectron2"
FPN, C4, RETINANET = (
    KIT / f"coco_{name}.yaml" for name in ("mask_rcnn_fpn_1x", "mask_rcnn_c4_1x", "retinanet_1x")
)
SCRIPT = ROOT / "scripts" / "finetune_detectron2.py"
