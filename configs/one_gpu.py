"""The paper's ImageNet run on one GPU: B = 256, every rate scaled with the batch.

    mcl-jax pretrain --config one_gpu --workdir runs/one_gpu \\
        --config.data.data_dir=/data

Data:     ImageNet-1k, 1.28 M images, prepared by `mcl-jax prepare imagenet`.
Chips:    one GPU of 80 GB or more.
Hours:    19 on one NVIDIA H200, by 1,856 images/s of 60 steps (docs/gpu.md); kNN and saving not counted.
Expected: not measured, and not in the paper, which has B = 4096 only.

The learning rate follows B by itself (optimizer.base_lr per 256 images). So does the target here:
m^(B / 4096) per step averages over as many images as m did at 4096 (Busbridge et al., 2023, "How to
Scale Your EMA"). More negatives than one GPU's memory has room for:
`--config.data.batch_size=1024 --config.optimizer.micro_batches=4 --config.loss.negatives=step`.
"""

from ml_collections import ConfigDict

from mcl_jax.configs import base

PUBLISHED_BATCH = 4096


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.batch_size = 256
    config.ema.base **= config.data.batch_size / PUBLISHED_BATCH
    return config
