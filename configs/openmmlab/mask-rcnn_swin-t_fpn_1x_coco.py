# Mask R-CNN Swin-T-FPN, COCO, 1x, in MMDetection 3
# paper: MCL Table 7 (supervised pre-training, 300 epochs)
# MCL supervised   box AP 44.7, mask AP 40.3
# supervised       box AP 43.9, mask AP 39.6   load_from = the same export of a vanilla run
# random init      not in the paper            load_from = None
#
# mcl-jax convert CHECKPOINT --to mmdet --out exported
# mim train mmdet configs/openmmlab/mask-rcnn_swin-t_fpn_1x_coco.py --gpus 8 --launcher pytorch
#
# The base trains with AdamW and drops paths as MMDetection does for Swin-T; `convert` writes the
# same file with the path of the weights filled in.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(embed_dims=96, convert_weights=False, init_cfg=None),
    neck=dict(in_channels=[96, 192, 384, 768], out_channels=256, norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=4,
            num_shared_fcs=1,
            in_channels=256,
            conv_out_channels=256,
            norm_cfg=norm_cfg,
        ),
        mask_head=dict(in_channels=256, norm_cfg=norm_cfg),
    ),
)
load_from = "exported/mcl_mmdet_swin_t.pth"
