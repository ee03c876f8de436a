# UperNet R50, ADE20K with 847 classes, in MMSegmentation 1
# paper: MCL Table 9
# MCL 100 epochs   mIoU 20.8
# supervised       mIoU 17.2   load_from = None, init_cfg of torchvision's ResNet-50
# random init      not in the paper   load_from = None
# The paper names no schedule; 160k iterations at batch 16 are MMSegmentation's for ADE20K.
#
# mcl-jax convert CHECKPOINT --to mmdet --parts backbone --out exported
# PYTHONPATH=. mim train mmsegmentation configs/openmmlab/upernet_r50_ade20k-847.py --gpus 8
#
# MMSegmentation has no ADE20K-847; `data_root` is a folder with images/{training,validation} and
# annotations/{training,validation}: 16-bit PNGs of class numbers 0..846, 65535 where there is none.
_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_160k.py",
]

custom_imports = dict(imports=["mcl_jax.configs.openmmlab.annotations_16bit"])
CLASSES, IGNORED = 847, 65535
norm_cfg = dict(type="SyncBN", requires_grad=True)
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size, seg_pad_val=IGNORED),
    # the base's ResNetV1c has another stem
    backbone=dict(type="ResNet", norm_eval=False, frozen_stages=-1, norm_cfg=norm_cfg),
    decode_head=dict(num_classes=CLASSES, ignore_index=IGNORED, norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=CLASSES, ignore_index=IGNORED, norm_cfg=norm_cfg),
    pretrained=None,
)
load_from = "exported/mcl_mmdet_resnet50.pth"

load = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations16Bit"),
]
train_pipeline = [
    *load,
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75, ignore_index=IGNORED),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    load[0],
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    load[1],
    dict(type="PackSegInputs"),
]


def dataset(split, pipeline):
    return dict(
        type="BaseSegDataset",
        metainfo=dict(classes=tuple(str(i) for i in range(CLASSES))),
        data_root="data/ade20k_847",
        data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
        img_suffix=".jpg",
        seg_map_suffix=".png",
        ignore_index=IGNORED,
        pipeline=pipeline,
    )


train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dataset("training", train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dataset("validation", test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"], ignore_index=IGNORED)
test_evaluator = val_evaluator
del dataset
