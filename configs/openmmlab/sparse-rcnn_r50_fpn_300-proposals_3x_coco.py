# Sparse R-CNN R50-FPN, 300 proposals, random crops, COCO, 3x, in MMDetection 3
# paper: DetCo Table 4
# DetCo (epochs not named)   box AP 46.5, APs 30.8, APm 49.5, APl 59.7
# supervised    box AP 45.0, APs 27.7, APm 47.5, APl 59.6   load_from = None, and in the backbone
#               init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50")
# random init   not in the paper   load_from = None
#
# mcl-jax convert CHECKPOINT --to mmdet --out exported
# mim train mmdet configs/openmmlab/sparse-rcnn_r50_fpn_300-proposals_3x_coco.py --gpus 8 \
#     --launcher pytorch
#
# The paper names no schedule; its supervised 45.0 is MMDetection's figure for this one. Only backbone
# and FPN are loaded: Sparse R-CNN has no box head of convolutions, and DetCo, BYOL and MoCo pre-train
# no FPN. What is pre-trained is not frozen, as in our other files.
_base_ = "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(frozen_stages=-1, norm_eval=False, norm_cfg=norm_cfg, init_cfg=None),
    neck=dict(norm_cfg=norm_cfg),
)
load_from = "exported/mcl_mmdet_resnet50.pth"
