"""From a config to the objective it names; every method is built here."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from mcl_jax import montage
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture, check_backbone
from mcl_jax.models.layers import Numerics
from mcl_jax.objectives import contrast, detco
from mcl_jax.objectives.base import Objective
from mcl_jax.objectives.byol import BYOL
from mcl_jax.objectives.mcl import MCL, LossSettings
from mcl_jax.objectives.moco import MoCo
from mcl_jax.objectives.supervised import Supervised, SupervisedSettings
from mcl_jax.sharding import AxisName
from mcl_jax.views import augment

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
NEGATIVES = ("micro_batch", "step")
METHODS = ("mcl", "supervised", "byol", "moco", "detco")


def settings(cls: type, section: Mapping[str, Any], **overrides: Any) -> Any:
    """Fills a settings dataclass from the config section whose keys are its field names."""
    names = [field.name for field in fields(cls) if field.name not in overrides]
    values = {name: section[name] for name in names}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values, **overrides)


def compute_dtype(name: str) -> jnp.dtype:
    """`numerics.compute_dtype` -> dtype; 'auto' is bfloat16 on TPU and GPU, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in COMPUTE_DTYPES:
        raise UserError(
            f"numerics.compute_dtype {name!r} is not auto or one of {', '.join(COMPUTE_DTYPES)}"
        )
    return COMPUTE_DTYPES[name]


def make_objective(
    config: Mapping[str, Any], images_per_device: int, norm_axis: AxisName | None
) -> Objective:
    """The configured method for b images per device; validates the config on the way.

    `norm_axis`: mapped axes over which BatchNorm's statistics are shared; None: one device.

    Raises:
      UserError: for any value that cannot work, naming it and what would.
    """
    method = config["method"]
    if method not in METHODS:
        raise UserError(f"method {method!r} is not one of {', '.join(METHODS)}")
    check_backbone(config["model"]["backbone"])
    numerics = config["numerics"]
    common = {
        "architecture": settings(Architecture, config["model"]),
        "numerics": Numerics(
            dtype=compute_dtype(numerics["compute_dtype"]),
            bn_momentum=numerics["bn_momentum"],
            bn_epsilon=numerics["bn_epsilon"],
            axis_name=norm_axis,
            remat=numerics["remat"],
        ),
        "image_size": config["data"]["image_size"],
        "images_per_device": images_per_device,
        "group_size": config["data"]["group_size"] or images_per_device,
    }
    _check_combinations(config)
    layout = settings(
        montage.Layout,
        config["montage"],
        boundary_sigma=config["montage"]["boundary_sigma"] or None,
    )
    views = augment.Settings.from_config(config["augment"])
    if method == "mcl":
        own = settings(LossSettings, config["loss"])
        return MCL(layout=layout, loss_settings=own, views=views, **common)
    if method == "supervised":
        weights = tuple(config["loss"]["level_weights"])
        own = settings(SupervisedSettings, config["supervised"], level_weights=weights)
        return Supervised(layout=layout, settings=own, views=one_sided(views), **common)
    if method == "byol":
        return BYOL(views=views, **common)
    queues = settings(contrast.Settings, config["moco"])
    if method == "moco":
        return MoCo(settings=queues, views=views, **common)
    own = settings(detco.Settings, config["detco"])
    return detco.DetCo(settings=queues, detco=own, views=views, **common)


def _check_combinations(config: Mapping[str, Any]) -> None:
    """UserError for keys that do not go together."""
    method, drop_path = config["method"], config["model"]["drop_path"]
    if drop_path > 0 and method in ("byol", "moco", "detco"):
        raise UserError(
            f"model.drop_path is {drop_path}: method {method!r} leaves out no branches, set it to 0 "
            "(mcl and supervised do)"
        )
    negatives = config["loss"]["negatives"]
    if negatives not in NEGATIVES:
        raise UserError(f"loss.negatives {negatives!r} is not one of {', '.join(NEGATIVES)}")
    if negatives == "step" and method != "mcl":
        raise UserError(
            f"loss.negatives is 'step': method {method!r} takes no negatives from the batch, set "
            "'micro_batch'"
        )
    shuffles = method in ("moco", "detco") and config["moco"]["norm"] == "shuffle"
    bn_devices = config["numerics"]["bn_devices"]
    by_device = {
        "model.drop_path": drop_path > 0,
        "montage.assembly 'copy_paste'": config["montage"]["assembly"] == "copy_paste",
        "moco.norm 'shuffle'": shuffles,
        "numerics.bn_devices": bn_devices > 0,
    }
    if config["data"]["group_size"] and any(by_device.values()):
        culprit = next(key for key, used in by_device.items() if used)
        raise UserError(
            f"data.group_size is {config['data']['group_size']}, but {culprit} works by device; "
            "set data.group_size to 0"
        )
    if shuffles and bn_devices:
        raise UserError(
            f"numerics.bn_devices is {bn_devices}, but moco.norm 'shuffle' keeps BatchNorm's "
            "statistics on each device; set numerics.bn_devices to 0"
        )


def one_sided(views: augment.Settings) -> augment.Settings:
    """One side with the mean of all sides' probabilities, for methods that compare nothing."""

    def mean(probabilities: tuple[float, ...]) -> tuple[float]:
        return (sum(probabilities) / len(probabilities),)

    return replace(views, blur_prob=mean(views.blur_prob), solarize_prob=mean(views.solarize_prob))
