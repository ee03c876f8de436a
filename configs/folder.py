"""Your own images, no labels needed, one GPU or a few: ResNet-50 FPN at B = 256.

    mcl-jax pretrain --config folder --workdir runs/mine \\
        --config.data.dataset=folder:/path/to/images

Data:     a folder of images; sub-folders are classes where there are any.
Chips:    one GPU or a few; on several, B stays that of all of them together.
Hours:    not measured; `mcl-jax bench step --config folder` measures a step.
Expected: depends on the images; docs/study.md has what small sets of photographs gave.

The learning rate follows B (optimizer.base_lr per 256 images). InfoNCE compares with the other
images of the batch, so a larger B is worth its memory.
"""

from ml_collections import ConfigDict

from mcl_jax.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dataset = "folder:/path/to/images"
    config.data.batch_size = 256
    config.knn.bank_split = "train[:90%]"
    config.knn.query_split = "train[90%:]"
    return config
