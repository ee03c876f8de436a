"""The paper's COCO run under its own name: configs/mcl.py:coco.

    python scripts/pretrain.py --config configs/mcl_r50_coco.py --workdir runs/mcl_coco \\
        --config.data.data_dir=/data
"""

from ml_collections import ConfigDict

from configs import mcl


def get_config() -> ConfigDict:
    return mcl.get_config("coco")
