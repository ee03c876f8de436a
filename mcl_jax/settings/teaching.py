"""Runs that cannot teach anything, as far as it takes the devices or the data to know.

What keys alone tell is in combinations.py; what shows during training is in runtime/health.py.
"""

from collections.abc import Mapping
from typing import Any

from mcl_jax.data.record import Source, why_unlabeled
from mcl_jax.errors import UserError
from mcl_jax.models.sizes import RESNETS

STRIDE = 32  # px of an image to one value of the last map


def check_run(config: Mapping[str, Any], devices: int, images: int) -> None:
    """Refuses a run in which nothing can be told apart.

    Args:
      config: as configs/base.py, checked.
      devices: that the run trains on.
      images: in the training split.

    Raises:
      UserError: for a single image, or batch statistics of a single value.
    """
    data = config["data"]
    if images < 2:
        raise UserError(
            f"{data['dataset']}, split {data['split']!r}, holds {images} image: there is nothing to "
            "tell apart; 2 images are the least, thousands teach"
        )
    shared = images_normalized(config, devices)
    if shared != 1:  # 0: the batch does not divide, which `program.build` says
        return
    projects = config["method"] in ("mcl", "byol") and config["montage"]["assembly"] != "mosaic"
    one_value = data["image_size"] == STRIDE and config["model"]["backbone"] in RESNETS
    if projects or one_value:
        where = "the projector" if projects else f"the last map (1 x 1 at {STRIDE} px)"
        raise UserError(
            f"BatchNorm of {where} would see a single value, which it turns into 0 whatever the image: "
            f"{_cause(config, devices)}"
        )


def images_normalized(config: Mapping[str, Any], devices: int) -> int:
    """How many images of a micro-batch share BatchNorm statistics."""
    if config["method"] in ("moco", "detco") and config["moco"]["norm"] == "shuffle":
        return config["moco"]["norm_group"]
    groups = devices // (config["numerics"]["bn_devices"] or devices)
    parts = config["optimizer"]["micro_batches"] * max(1, groups)
    return config["data"]["batch_size"] // parts


def _cause(config: Mapping[str, Any], devices: int) -> str:
    if config["method"] in ("moco", "detco") and config["moco"]["norm"] == "shuffle":
        return "moco.norm_group is 1; 2 or more would do"
    size, parts = config["data"]["batch_size"], config["optimizer"]["micro_batches"]
    return (
        f"data.batch_size {size} in optimizer.micro_batches {parts}, on {devices} devices with "
        f"numerics.bn_devices {config['numerics']['bn_devices']}; a larger batch, fewer "
        "micro-batches or numerics.bn_devices 0 would do"
    )


def check_labels(config: Mapping[str, Any], source: Source) -> None:
    """A supervised method needs labels, of as many classes as configured, and two of them at least.

    Args:
      config: as configs/base.py.
      source: the training split. Where it knows all its labels at once (`labels`), they are looked
        through.

    Raises:
      UserError: for data without labels, with other classes, or with images of one class alone.
    """
    if config["method"] != "supervised":
        return
    dataset, classes = config["data"]["dataset"], config["supervised"]["classes"]
    if reason := why_unlabeled(source):
        raise UserError(f"{dataset} has no labels: method 'supervised' needs them ({reason})")
    named = len(source.class_names)
    class_count = len(set(getattr(source, "labels", range(named))))
    if class_count < 2:
        raise UserError(
            f"{dataset} has images of one class alone: method 'supervised' learns to tell classes "
            "apart; mcl, byol, moco and detco need none"
        )
    if named != classes:
        raise UserError(f"supervised.classes is {classes}, but {dataset} has {named} classes")
