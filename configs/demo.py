"""Minutes on a laptop: a narrow ResNet-18 on the built-in scenes.

    mcl-jax pretrain --config demo --workdir runs/demo

Data:     the built-in scenes, rendered at the first start.
Chips:    a CPU.
Hours:    four minutes on two idle CPU cores (measured; README).
Expected: kNN accuracy 19 % -> 46 %, mean of three seeds (measured; README).

So short a run needs another recipe than the paper's: AdamW, a lower temperature, a target network
that follows faster, and milder crops.
"""

from ml_collections import ConfigDict

from mcl_jax.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dataset = "scenes"
    config.data.batch_size = 64
    config.data.image_size = 64
    config.data.canvas_size = 96
    config.data.threads = 2
    config.model.backbone = "resnet18"
    config.model.width = 16
    config.model.fpn_channels = 32
    config.model.head_convs = 1
    config.model.projector_hidden = 128
    config.model.projector_out = 64
    config.model.predictor_hidden = 128
    config.loss.temperature = 0.1
    config.augment.area = (0.4, 1.0)
    config.optimizer.name = "adamw"
    config.optimizer.base_lr = 0.008
    config.optimizer.weight_decay = 0.01
    config.optimizer.epochs = 10.0
    config.optimizer.warmup_epochs = 1.0
    config.ema.base = 0.9
    config.ema.final = 0.99
    config.knn.every_epochs = 5.0
    config.log.every_steps = 10
    config.log.checkpoint_steps = 100
    return config
