"""The paper's main run under its own name: configs/mcl.py without an argument.

    python scripts/pretrain.py --config configs/mcl_r50_imagenet.py --workdir runs/mcl_r50 \\
        --config.data.data_dir=/data
"""

from ml_collections import ConfigDict

from configs import mcl


def get_config() -> ConfigDict:
    return mcl.get_config()
