"""The paper's main run: ResNet-50 FPN, ImageNet, 100 epochs, B = 4096 (MCL section 4.1).

    python scripts/pretrain.py --config configs/mcl_r50_imagenet.py --workdir runs/mcl_r50 \\
        --config.data.data_dir=/data

Expected after Mask R-CNN fine-tuning on COCO, 1x: 42.5 AP box, 38.2 AP mask (paper Table 3; not
yet measured with this code). Longer: --config.optimizer.epochs=200 or 400.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.get_config()
