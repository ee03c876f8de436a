"""Every key of configs/base.py: type, unit, range, what 0 means, what a change does to a run.

configs/base.py keeps the meaning in words and the source of the default; a test holds the two
together. `[` and `]` are ends that belong to a range, `(` and `)` ends that do not.
"""

from mcl_jax.models.sizes import RESNETS, SWINS
from mcl_jax.settings import effects as e
from mcl_jax.settings.rules import Interval, Rule

EXPORTS = ("detectron2", "torchvision", "timm", "mmdet", "safetensors")  # of convert/targets
WRITERS = ("jsonl", "tensorboard", "wandb", "mlflow")  # of report/writers.py


def count(changes: str, interval: str = "[1, inf)", unit: str = "", **more) -> Rule:
    return Rule(int, changes, Interval.parse(interval), unit, **more)


def number(changes: str, interval: str, unit: str = "", **more) -> Rule:
    return Rule(float, changes, Interval.parse(interval), unit, **more)


def choice(changes: str, *choices: str) -> Rule:
    return Rule(str, changes, choices=choices)


def text(changes: str, *, empty: bool = False) -> Rule:
    return Rule(str, changes, empty=empty)


def switch(changes: str) -> Rule:
    return Rule(bool, changes)


def numbers(changes: str, interval: str, length: int | tuple[int, int], **more) -> Rule:
    length = (length, length) if isinstance(length, int) else length
    return Rule(more.pop("kind", float), changes, Interval.parse(interval), length=length, **more)


def backbones() -> tuple[str, ...]:
    """Names of all networks there are."""
    return (*RESNETS, *SWINS)


def _top() -> dict[str, Rule]:
    return {
        "seed": count(e.ORDER, "[0, 4294967295]"),
        "method": choice(e.NETWORK, "mcl", "supervised", "byol", "moco", "detco"),
    }


def _data() -> dict[str, Rule]:
    return {
        "dataset": text(e.ORDER_AND_SCHEDULE),
        "split": text(e.ORDER_AND_SCHEDULE),
        "data_dir": text(e.NOTHING, empty=True),
        "batch_size": count(e.ORDER_AND_SCHEDULE, unit="images"),
        "group_size": count(
            e.VIEWS, "[0, inf)", "images", zero="all that a device holds of a micro-batch"
        ),
        "image_size": count(e.VIEWS, "[32, inf)", "px", multiple=32),
        "canvas_size": count(e.VIEWS, unit="px"),
        "workers": count(e.NOTHING, "[0, inf)", zero="decode in threads of this process"),
        "threads": count(e.NOTHING, "[0, inf)", zero="decode on demand"),
        "max_unreadable_share": number(e.NOTHING, "[0, 1]"),
        "unreadable_grace": count(e.NOTHING, "[0, inf)", "images"),
    }


def _model() -> dict[str, Rule]:
    return {
        "backbone": Rule(str, e.NETWORK, choices=backbones),
        "width": count(e.NETWORK, unit="channels"),
        "drop_path": number(e.LOSS, "[0, 1)"),
        "neck": choice(e.NETWORK, "fpn", "c4"),
        "fpn_channels": count(e.NETWORK),
        "head_convs": count(e.NETWORK, "[0, inf)"),
        "projector_hidden": count(e.NETWORK),
        # a unit vector of one dimension is 1 or -1 and has no gradient
        "projector_out": count(e.NETWORK, "[2, inf)", "dimensions"),
        "predictor_hidden": count(e.NETWORK),
    }


def _numerics() -> dict[str, Rule]:
    return {
        "compute_dtype": choice(e.NUMERICS, "auto", "float32", "bfloat16", "float64"),
        "remat": switch(e.NOTHING),
        "bn_devices": count(e.NUMERICS, "[0, inf)", "devices", zero="all of them"),
        "bn_momentum": number(e.NUMERICS, "[0, 1)"),  # at 1 the running statistics never move
        "bn_epsilon": number(e.NUMERICS, "(0, inf)"),
    }


def _montage() -> dict[str, Rule]:
    return {
        "assembly": choice(e.LOSS, "montage", "mosaic", "copy_paste"),
        "levels": count(e.NETWORK, "[1, 4]"),
        "copies": numbers(e.VIEWS, "[0, inf)", (1, 4), kind=int),
        "shrink": choice(e.VIEWS, "nearest", "antialias"),
        "boundary_sigma": number(e.VIEWS, "[0, inf)", "sub-image widths", zero="none"),
    }


def _loss() -> dict[str, Rule]:
    return {
        "pyramid": choice(e.NUMERICS, "assigned", "full"),
        "matching": choice(e.LOSS, "a", "b", "c", "d"),
        "temperature": number(e.LOSS, "(0, inf)"),
        "negatives": choice(e.LOSS, "micro_batch", "step"),
        "level_weights": numbers(e.LOSS, "[0, inf)", (1, 4)),
    }


def _methods() -> dict[str, Rule]:
    return {
        "supervised.classes": count(e.NETWORK, "[2, inf)"),
        "supervised.pooling": choice(e.NETWORK, "montage", "image"),
        "supervised.label_smoothing": number(e.LOSS, "[0, 1)"),
        "moco.queue_size": count(e.NETWORK, unit="keys"),
        "moco.temperature": number(e.LOSS, "(0, inf)"),
        "moco.norm": choice(e.NUMERICS, "sync", "shuffle"),
        "moco.norm_group": count(e.NUMERICS, unit="images"),
        "detco.stage_weights": numbers(e.LOSS, "[0, inf)", 4),
        "detco.crop_size": count(e.VIEWS, "[3, inf)", "px", multiple=3),
        "detco.patch_size": count(e.VIEWS, unit="px"),
        "detco.local_area": numbers(e.VIEWS, "(0, 1]", 2, order="range"),
        "detco.shuffle_patches": switch(e.VIEWS),
    }


def _augment() -> dict[str, Rule]:
    share = number(e.VIEWS, "[0, 1]")
    half_width = number(e.VIEWS, "[0, inf)")
    return {
        "area": numbers(e.VIEWS, "(0, 1]", 2, order="range"),
        "aspect": numbers(e.VIEWS, "(0, inf)", 2, order="range"),
        "flip_prob": share,
        "jitter_prob": share,
        "brightness": half_width,
        "contrast": half_width,
        "saturation": half_width,
        "hue": number(e.VIEWS, "[0, 0.5]", "turns"),
        "grayscale_prob": share,
        "blur_prob": numbers(e.VIEWS, "[0, 1]", 2),
        "blur_sigma": numbers(e.VIEWS, "(0, inf)", 2, unit="px", order="range"),
        "solarize_prob": numbers(e.VIEWS, "[0, 1]", 2),
        "solarize_threshold": share,
        "mean": numbers(e.VIEWS, "[0, 1]", 3),
        "std": numbers(e.VIEWS, "(0, inf)", 3),
    }


def _optimizer() -> dict[str, Rule]:
    return {
        "name": choice(e.OPTIMIZER, "lars", "sgd", "adamw"),
        "base_lr": number(e.SCHEDULE, "(0, inf)"),
        "final_lr": number(e.SCHEDULE, "[0, inf)"),
        "epochs": number(e.SCHEDULE, "(0, inf)"),
        "micro_batches": count(e.LOSS),
        "warmup_epochs": number(e.SCHEDULE, "[0, inf)"),
        "warmup_start": number(e.SCHEDULE, "[0, 1]"),
        "warmup_shape": choice(e.SCHEDULE, "sequential", "multiplied"),
        "momentum": number(e.UPDATE, "[0, 1)"),
        "weight_decay": number(e.UPDATE, "[0, inf)"),
        "trust_coefficient": number(e.UPDATE, "(0, inf)"),
        "trust_denominator": choice(e.OPTIMIZER, "sum", "optax"),
        "excluded": choice(e.OPTIMIZER, "norm_and_bias", "authors", "none"),
        "clip_norm": number(e.OPTIMIZER, "[0, inf)", zero="no clipping"),
    }


def _evaluations() -> dict[str, Rule]:
    m = e.MEASURE
    return {
        "ema.base": number(e.UPDATE, "[0, 1]"),
        "ema.final": number(e.UPDATE, "[0, 1]"),
        "knn.bank_split": text(m),
        "knn.query_split": text(m),
        "knn.max_images": count(m),
        "knn.batch_size": count(e.NOTHING, unit="images"),
        "knn.every_epochs": number(e.NOTHING, "[0, inf)", zero="never"),
        "knn.neighbors": count(m),
        "knn.temperature": number(m, "(0, inf)"),
        "knn.shrinks": numbers(m, "[2, inf)", (0, 16), kind=int),
        "linear.train_split": text(m),
        "linear.test_split": text(m),
        "linear.batch_size": count(m, unit="images"),
        "linear.lrs": numbers(m, "(0, inf)", (1, 1000), order="distinct"),
        "linear.momentum": number(m, "[0, 1)"),
        "linear.weight_decay": number(m, "[0, inf)"),
        "linear.epochs": number(m, "(0, inf)"),
        "linear.schedule": choice(m, "cosine", "constant"),
        "linear.area": numbers(m, "(0, 1]", 2, order="range"),
        "linear.aspect": numbers(m, "(0, inf)", 2, order="range"),
        "linear.flip_prob": number(m, "[0, 1]"),
        "linear.checkpoint_epochs": number(e.NOTHING, "(0, inf)"),
    }


def _svm() -> dict[str, Rule]:
    m = e.MEASURE
    stages = ("res2", "res3", "res4", "res5")
    return {
        "train_split": text(m),
        "test_split": text(m),
        "batch_size": count(m, unit="images"),
        "stages": Rule(str, m, choices=stages, length=(1, 4), order="distinct"),
        "costs": numbers(m, "(0, inf)", (1, 1000), order="rising"),
        "folds": count(m, "[2, inf)"),
        "positive_weight": number(m, "(0, inf)"),
        "max_iterations": count(m),
        "tolerance": number(m, "(0, inf)"),
        "shots": numbers(m, "[1, inf)", (0, 1000), unit="images", kind=int, order="rising"),
        "samples": count(m),
        "threads": count(e.NOTHING, "[0, inf)", zero="as many as CPUs"),
    }


def _probe() -> dict[str, Rule]:
    m = e.MEASURE
    return {
        "dataset": text(m),
        "train_split": text(m),
        "test_split": text(m),
        "train_json": text(m, empty=True),
        "train_folder": text(m, empty=True),
        "test_json": text(m, empty=True),
        "test_folder": text(m, empty=True),
        "image_size": count(m, "[32, inf)", "px", multiple=32),
        "train_images": count(m, "[0, inf)", zero="all"),
        "eval_images": count(m, "[0, inf)", zero="all"),
        "steps": count(m),
        "batch_size": count(m, unit="images"),
        "scale_jitter": numbers(m, "(0, inf)", 2, order="range"),
        "min_visible": number(m, "[0, 1]"),
        "cache_gb": number(e.NOTHING, "[0, inf)"),
        "checkpoint_steps": count(e.NOTHING, unit="steps"),
        "eval_batch_size": count(m, unit="images"),
        "base_lr": number(m, "(0, inf)"),
        "warmup_steps": count(m, "[0, inf)"),
        "weight_decay": number(m, "[0, inf)"),
        "head_channels": count(m),
        "head_convs": count(m, "[0, inf)"),
        "head_groups": count(m),
        "prior": number(m, "(0, 1)"),
        "levels": Rule(str, m, choices=("P2", "P3", "P4", "P5"), length=(1, 4)),
        "level_bounds": numbers(m, "(0, inf)", (0, 3), unit="px", order="rising"),
        "center_radius": number(m, "(0, inf)", "strides"),
        "focal_alpha": number(m, "[0, 1]"),
        "focal_gamma": number(m, "[0, inf)"),
        "score_threshold": number(m, "[0, 1)"),
        "candidates": count(m),
        "nms_iou": number(m, "[0, 1]"),
        "max_detections": count(m),
        "area_bounds": numbers(m, "(0, inf)", 2, unit="px", order="rising"),
    }


def _export() -> dict[str, Rule]:
    return {
        "targets": Rule(str, e.NOTHING, choices=EXPORTS, length=(0, 5), order="distinct"),
    }


def _log() -> dict[str, Rule]:
    n = e.NOTHING
    return {
        "every_steps": count(n),
        "checkpoint_steps": count(n, unit="steps"),
        "keep_checkpoints": count(n),
        "writers": Rule(str, n, choices=WRITERS, length=(1, 4), order="distinct"),
        "project": text(n),
        "progress_s": number(n, "(0, inf)", "s"),
        "page_s": number(n, "[0, inf)", "s", zero="at its end"),
        "lost_host_s": count(n, unit="s"),
        "montages": count(n, "[0, inf)", "canvases", zero="no picture"),
        "collapse_share": number(n, "[0, 1]"),
        "collapse_patience": count(n),
    }


# In the order of configs/base.py.
SECTIONS = (
    *("data", "model", "numerics", "montage", "loss", "supervised", "moco", "detco"),
    *("augment", "optimizer", "ema", "knn", "linear", "svm", "probe", "export", "log"),
)
OTHER_SECTIONS = ("study",)  # of configs/study_*.py; mcl_jax.study reads it


def _table() -> dict[str, Rule]:
    parts = {"data": _data, "model": _model, "numerics": _numerics, "montage": _montage}
    parts |= {"loss": _loss, "augment": _augment, "optimizer": _optimizer}
    parts |= {"svm": _svm, "probe": _probe}
    parts |= {"export": _export, "log": _log}
    rules = _methods() | _evaluations()
    for section, make in parts.items():
        rules |= {f"{section}.{name}": rule for name, rule in make().items()}
    return _top() | dict(
        sorted(rules.items(), key=lambda item: SECTIONS.index(item[0].partition(".")[0]))
    )


KEYS = _table()  # 'section.key' -> Rule
