"""From a config to the objective it names; every method is built here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from mcl_jax import montage
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.objectives import contrast, detco
from mcl_jax.objectives.base import Objective
from mcl_jax.objectives.byol import BYOL
from mcl_jax.objectives.mcl import MCL, LossSettings
from mcl_jax.objectives.moco import MoCo
from mcl_jax.objectives.supervised import Supervised, SupervisedSettings
from mcl_jax.settings.records import fill
from mcl_jax.sharding import AxisName
from mcl_jax.views import augment

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def compute_dtype(name: str) -> jnp.dtype:
    """`numerics.compute_dtype` -> dtype; 'auto' is bfloat16 on TPU and GPU, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name == "float64" and not jax.config.jax_enable_x64:  # JAX would compute in float32
        raise UserError(
            "numerics.compute_dtype is 'float64': set JAX_ENABLE_X64=1, or use 'float32'"
        )
    return COMPUTE_DTYPES[name]


def numerics_of(
    config: Mapping[str, Any], axis_name: AxisName | None = None, *, remat: bool = False
) -> Numerics:
    """How the configured network computes.

    Args:
      config: as configs/base.py; the section numerics is read.
      axis_name: mapped axes over which BatchNorm's statistics are shared; None: one device.
      remat: recompute residual blocks in the backward pass; nothing without one.
    """
    section = config["numerics"]
    dtype = compute_dtype(section["compute_dtype"])
    return fill(Numerics, section, dtype=dtype, axis_name=axis_name, remat=remat)


def make_objective(
    config: Mapping[str, Any], images_per_device: int, norm_axis: AxisName | None
) -> Objective:
    """The configured method for b images per device.

    Args:
      config: as configs/base.py, checked by `settings.door.check` where it comes from a user.
      images_per_device: b.
      norm_axis: mapped axes over which BatchNorm's statistics are shared; None: one device.

    Raises:
      UserError: if so many images cannot be grouped or montaged as configured.
    """
    method = config["method"]
    common = {
        "architecture": fill(Architecture, config["model"]),
        "numerics": numerics_of(config, axis_name=norm_axis, remat=config["numerics"]["remat"]),
        "image_size": config["data"]["image_size"],
        "images_per_device": images_per_device,
        "group_size": config["data"]["group_size"] or images_per_device,
    }
    layout = fill(montage.Layout, config["montage"])
    views = fill(augment.AugmentSettings, config["augment"])
    if method == "mcl":
        settings = fill(LossSettings, config["loss"])
        return MCL(layout=layout, loss_settings=settings, views=views, **common)
    if method == "supervised":
        weights = tuple(config["loss"]["level_weights"])
        settings = fill(SupervisedSettings, config["supervised"], level_weights=weights)
        return Supervised(layout=layout, settings=settings, views=one_sided(views), **common)
    if method == "byol":
        return BYOL(views=views, **common)
    queues = fill(contrast.QueueSettings, config["moco"])
    if method == "moco":
        return MoCo(settings=queues, views=views, **common)
    settings = fill(detco.DetCoSettings, config["detco"])
    return detco.DetCo(settings=queues, detco=settings, views=views, **common)


def one_sided(views: augment.AugmentSettings) -> augment.AugmentSettings:
    """One side with the mean of all sides' probabilities, for methods that compare nothing."""

    def mean(probabilities: tuple[float, ...]) -> tuple[float]:
        return (sum(probabilities) / len(probabilities),)

    return replace(views, blur_prob=mean(views.blur_prob), solarize_prob=mean(views.solarize_prob))
