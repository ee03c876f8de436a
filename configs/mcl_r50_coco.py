"""The paper's COCO run: train2017 + unlabeled2017 (241k images), 530 epochs (MCL section 4.1).

    python scripts/pretrain.py --config configs/mcl_r50_coco.py --workdir runs/mcl_coco \\
        --config.data.data_dir=/data

Expected after Mask R-CNN fine-tuning on COCO, 1x: 41.8 AP box, 37.7 AP mask (paper Table 1; not
yet measured with this code).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dataset = "tfds:coco/2017"
    config.data.split = "train+unlabeled"
    config.data.canvas_size = 640  # px, the longer side of COCO's images
    config.optimizer.epochs = 530.0
    config.knn.every_epochs = 0.0  # COCO images have no single label
    return config
