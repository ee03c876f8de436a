"""The paper's COCO run under its own name: configs/mcl.py:coco.

    python scripts/pretrain.py --config configs/mcl_r50_coco.py --workdir runs/mcl_coco \\
        --config.data.data_dir=/data
"""

from mcl_jax.configs import mcl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return mcl.get_config("coco")
