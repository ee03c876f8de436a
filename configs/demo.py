"""Minutes on a laptop: a narrow ResNet-18 on the built-in scenes.

python scripts/pretrain.py --config configs/demo.py --workdir runs/demo
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dataset = "scenes"
    config.data.batch_size = 64
    config.data.image_size = 64
    config.data.canvas_size = 128
    config.data.threads = 2
    config.model.backbone = "resnet18"
    config.model.width = 16
    config.model.fpn_channels = 32
    config.model.projector_hidden = 128
    config.model.projector_out = 64
    config.model.predictor_hidden = 128
    config.loss.temperature = 0.2
    config.optimizer.epochs = 4.0
    config.optimizer.warmup_epochs = 0.5
    config.optimizer.base_lr = 4.0
    config.knn.every_epochs = 1.0
    config.log.every_steps = 10
    config.log.checkpoint_steps = 100
    return config
