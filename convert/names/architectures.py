"""Which network a checkpoint holds: read from its config, or inferred from the authors' shapes."""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import jax

from mcl_jax import program, sharding
from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture, is_swin
from mcl_jax.models.pyramid import COARSEST, PYRAMID_LEVELS
from mcl_jax.models.resnet import ARCHITECTURES
from mcl_jax.settings import door

Shapes = Mapping[str, tuple[int, ...]]

# Of params['encoder'], what a detector has too.
PARTS = ("backbone", "fpn", "head")

# Vectors whose length is a size of the network: a vector cannot arrive transposed.
SIZES = {
    "width": "encoder_q.0.bn1.weight",
    "fpn_channels": "encoder_q.1.lateral_convs.0.bn.weight",
    "projector_hidden": "encoder_q.2.mlp.0.bias",
    "projector_out": "encoder_q.2.mlp.3.bias",
    "predictor_hidden": "head.predictor.0.mlp.0.bias",
}


def from_config(config: Mapping[str, Any]) -> Architecture:
    """The networks of a run's configuration; raises UserError where `model` lacks a key."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise UserError("the checkpoint's configuration has no section 'model'")
    names = [field.name for field in fields(Architecture)]
    missing = [name for name in names if name not in model]
    if missing:
        raise UserError(f"the checkpoint's configuration lacks model.{', model.'.join(missing)}")
    return Architecture(**{name: model[name] for name in names})


def on_one_device(config: Mapping[str, Any]) -> program.Program:
    """The run of a configuration, as one device would do it: for what does not depend on that."""
    defaults = program.plain_config(base.get_config())  # for what a checkpoint is too old to have
    plain = door.completed(program.plain_config(config), defaults)
    plain["numerics"]["bn_devices"] = 0
    # Shapes and initial values do not depend on the number of images.
    images = plain["data"]["batch_size"]
    return program.build(plain, sharding.make_mesh(jax.devices()[:1]), images)


def demand_resnet(a: Architecture, target: str) -> None:
    """UserError where a target has no Swin, saying which one does."""
    if is_swin(a.backbone):
        raise UserError(
            f"{target} has no {a.backbone}; --to torchvision or timm exports its backbone, which "
            "torchvision and detectors with torchvision's Swin names load"
        )


def method(config: Mapping[str, Any]) -> str:
    """The configured method; a configuration from before there was a choice is MCL's."""
    return config.get("method", "mcl")


def classifies_images(config: Mapping[str, Any]) -> bool:
    """Whether the run trained a classifier of whole images on pooled res5."""
    return method(config) == "supervised" and config["supervised"]["pooling"] == "image"


def detector_parts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What of PARTS a run has pre-trained in a form that an FPN detector can load."""
    of_regions = method(config) in ("mcl", "supervised") and not classifies_images(config)
    return PARTS if of_regions and config["model"]["neck"] == "fpn" else PARTS[:1]


def idle_levels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Pyramid levels that the run's loss never read: their convolutions are as initialized."""
    montage = config.get("montage", {})
    levels = range(montage.get("levels", 4))
    if montage.get("assembly") == "mosaic":
        levels = (1,)
    return tuple(f"P{COARSEST - s}" for s in range(PYRAMID_LEVELS) if s not in levels)


def infer(shapes: Shapes) -> tuple[Architecture, int]:
    """(networks, number of predictors) of an authors' state_dict.

    Args:
      shapes: name -> shape in torch layout, without prefixes of wrappers.

    Raises:
      UserError: where the names are not those of the authors' code or no ResNet fits.
    """
    missing = [name for name in SIZES.values() if len(shapes.get(name, ())) != 1]
    if missing:
        raise UserError(
            f"not a checkpoint of the authors' code: no vector {', '.join(missing)} "
            "(expected encoder_q.0/1/2.*, encoder_k.* and head.predictor.*)"
        )
    sizes = {field: shapes[name][0] for field, name in SIZES.items()}
    blocks = tuple(_count(shapes, rf"encoder_q\.0\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    bottleneck = any(re.match(r"encoder_q\.0\.layer\d\.\d+\.conv3\.", name) for name in shapes)
    fitting = [name for name, kind in ARCHITECTURES.items() if kind == (blocks, bottleneck)]
    if not fitting:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"encoder_q.0 has {blocks} {kind} blocks, which is none of {', '.join(ARCHITECTURES)}"
        )
    convs = _count(shapes, r"encoder_q\.2\.cls_convs\.(\d+)\.")
    levels = _count(shapes, r"head\.predictor\.(\d+)\.")
    network = Architecture(
        backbone=fitting[0], head_convs=convs, neck="fpn", drop_path=0.0, **sizes
    )
    return network, levels


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index that `pattern` captures at the start of a name."""
    matches = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def differences(ours: Architecture, levels: int, theirs: Architecture, their_levels: int) -> list:
    """What the file says and the configuration does not, key by key."""
    config = asdict(ours) | {"montage.levels": levels}
    file = asdict(theirs) | {"montage.levels": their_levels}
    return [
        f"{key if '.' in key else 'model.' + key} is {config[key]!r} in the configuration, "
        f"{file[key]!r} in the file"
        for key in config
        if config[key] != file[key]
    ]
