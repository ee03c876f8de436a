"""Where checkpoints go to and, by the same names, come from."""

from mcl_jax.convert.targets import detectron2, mmdet, safetensors, torch_models

TARGETS = {
    target.name: target
    for target in (
        detectron2.TARGET,
        *torch_models.TARGETS,
        mmdet.TARGET,
        safetensors.TARGET,
    )
}
