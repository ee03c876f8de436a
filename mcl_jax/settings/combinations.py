"""Keys that do not go together, and runs that cannot teach anything, as far as keys alone tell.

What takes the devices or the data to know is in teaching.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mcl_jax.models.sizes import RESNETS

Config = Mapping[str, Any]
CELLS = 3  # on a side of DetCo's crop
QUEUES = ("moco", "detco")  # methods with a queue of keys


def problem(config: Config) -> str | None:
    """The first thing that cannot work, with what would; None if everything goes together."""
    for check in CHECKS:
        if message := check(config):
            return message
    return None


def _drop_path(config: Config) -> str | None:
    model, method = config["model"], config["method"]
    if not model["drop_path"]:
        return None
    if model["backbone"] in RESNETS:
        return (
            f"model.drop_path is {model['drop_path']}, but {model['backbone']} leaves out no "
            "branches (Swin does); set it to 0"
        )
    if method in ("byol", *QUEUES):
        return (
            f"model.drop_path is {model['drop_path']}: method {method!r} leaves out no branches, set "
            "it to 0 (mcl and supervised do)"
        )
    return None


def _negatives(config: Config) -> str | None:
    method, loss = config["method"], config["loss"]
    if loss["negatives"] == "step" and method != "mcl":
        return (
            f"loss.negatives is 'step': method {method!r} takes no negatives from the batch, set "
            "'micro_batch'"
        )
    if method != "mcl":
        return None
    images, parts = config["data"]["batch_size"], config["optimizer"]["micro_batches"]
    if images < 2:
        return (
            f"data.batch_size is {images}: method 'mcl' tells an image from the others of its batch, "
            "and there are none; 2 is the least, more are better"
        )
    if images // parts < 2 and loss["negatives"] != "step":
        return (
            f"optimizer.micro_batches is {parts} with data.batch_size {images}: method 'mcl' tells an "
            "image from the others of its micro-batch, and there are none; "
            f"{max(1, images // 2)} micro-batches or fewer would do"
        )
    return None


def _levels(config: Config) -> str | None:
    """Levels, and what has one value per level."""
    if config["method"] not in ("mcl", "supervised"):
        return None
    montage, weights = config["montage"], config["loss"]["level_weights"]
    levels, assembly = montage["levels"], montage["assembly"]
    if assembly == "mosaic" and levels != 2:
        return f"a mosaic is level 1 alone: montage.levels must be 2, is {levels}"
    per_level = {"montage.copies": montage["copies"], "loss.level_weights": weights}
    for key, values in per_level.items():
        if len(values) < levels:
            return (
                f"{key} {tuple(values)} has {len(values)} entries, montage.levels is {levels}; one "
                "entry per level would do"
            )
    if not any(weights[:levels]):
        return (
            f"loss.level_weights {tuple(weights)} weighs all {levels} levels with 0: there is nothing "
            "to learn; give one of them a weight above 0"
        )
    canvases = range(1, 2) if assembly == "mosaic" else range(levels)
    for level in canvases if assembly != "copy_paste" else ():
        if not montage["copies"][level]:
            return (
                f"montage.copies {tuple(montage['copies'])} shows no image on level {level}; from 1 "
                "on, or fewer montage.levels"
            )
    return None


def _other_assemblies(config: Config) -> str | None:
    """What the baselines of paper Table 8 can be combined with."""
    montage, method, loss = config["montage"], config["method"], config["loss"]
    assembly, levels = montage["assembly"], montage["levels"]
    if assembly != "copy_paste" or method not in ("mcl", "supervised"):
        return None
    if method == "supervised":
        return "montage.assembly 'copy_paste' is self-supervised only (paper Table 8)"
    if levels < 2:
        return f"montage.assembly 'copy_paste' needs at least 2 levels, got {levels} levels"
    if loss["pyramid"] == "full":
        return (
            "loss.pyramid 'full' is the authors' computation of a montage; "
            "with montage.assembly 'copy_paste' use 'assigned'"
        )
    return None


def _groups(config: Config) -> str | None:
    """What works by device does not go with groups of images that are smaller."""
    size, bn_devices = config["data"]["group_size"], config["numerics"]["bn_devices"]
    shuffles = config["method"] in QUEUES and config["moco"]["norm"] == "shuffle"
    by_device = {
        "model.drop_path": config["model"]["drop_path"] > 0,
        "montage.assembly 'copy_paste'": config["montage"]["assembly"] == "copy_paste",
        "moco.norm 'shuffle'": shuffles,
        "numerics.bn_devices": bn_devices > 0,
    }
    if size and any(by_device.values()):
        culprit = next(key for key, is_used in by_device.items() if is_used)
        return f"data.group_size is {size}, but {culprit} works by device; set data.group_size to 0"
    if shuffles and bn_devices:
        return (
            f"numerics.bn_devices is {bn_devices}, but moco.norm 'shuffle' keeps BatchNorm's "
            "statistics on each device; set numerics.bn_devices to 0"
        )
    return None


def _queue(config: Config) -> str | None:
    if config["method"] not in QUEUES:
        return None
    size, parts = config["moco"]["queue_size"], config["optimizer"]["micro_batches"]
    entering = config["data"]["batch_size"] // parts
    if size < entering:
        return (
            f"moco.queue_size {size} is smaller than the batch of {entering} images whose keys enter "
            f"it at once; at least {entering} would do"
        )
    return None


def _detco(config: Config) -> str | None:
    if config["method"] != "detco":
        return None
    detco = config["detco"]
    cell = detco["crop_size"] // CELLS
    if detco["patch_size"] > cell:
        return (
            f"detco.patch_size {detco['patch_size']} does not fit a cell of {cell} px "
            f"(detco.crop_size {detco['crop_size']} / {CELLS}); 1 to {cell} would"
        )
    if not any(detco["stage_weights"]):
        return (
            f"detco.stage_weights {tuple(detco['stage_weights'])} are all 0: there is nothing to "
            "learn; give one of them a weight above 0"
        )
    return None


def _shrinks(config: Config) -> str | None:
    side = config["data"]["image_size"]
    for factor in config["knn"]["shrinks"]:
        if side % factor and side // factor >= 8:  # smaller ones are left out
            return f"knn.shrinks holds {factor}, which does not divide data.image_size {side}"
    return None


def of_probe(probe: Config) -> str | None:
    """As `problem`, of the section `probe` alone."""
    all_levels = ("P2", "P3", "P4", "P5")
    levels = tuple(probe["levels"])
    if levels != all_levels[-len(levels) :]:
        return f"probe.levels must be the end of {', '.join(all_levels)}, got {', '.join(levels)}"
    if len(probe["level_bounds"]) != len(levels) - 1:
        return (
            f"probe.level_bounds must be {len(levels) - 1} numbers, one between each two of "
            f"{', '.join(levels)}, got {tuple(probe['level_bounds'])}"
        )
    if probe["head_channels"] % probe["head_groups"]:
        return (
            f"probe.head_channels {probe['head_channels']} is not a multiple of probe.head_groups "
            f"{probe['head_groups']}"
        )
    return None


def _writers(config: Config) -> str | None:
    writers = config["log"]["writers"]
    if "jsonl" in writers:
        return None
    return (
        f"log.writers {tuple(writers)} lacks 'jsonl', from which curves, card and summary are "
        "made; add it"
    )


CHECKS: tuple[Callable[[Config], str | None], ...] = (
    _drop_path,
    _negatives,
    _levels,
    _other_assemblies,
    _groups,
    _queue,
    _detco,
    _shrinks,
    lambda config: of_probe(config["probe"]),
    _writers,
)
