"""The paper's main run under its own name: configs/mcl.py without an argument.

    python scripts/pretrain.py --config configs/mcl_r50_imagenet.py --workdir runs/mcl_r50 \\
        --config.data.data_dir=/data
"""

from mcl_jax.configs import mcl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return mcl.get_config()
