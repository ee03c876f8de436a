"""Ranges of values that Detectron2 itself checks by their type alone, and stumbles over later."""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mcl_jax.errors import UserError


class Range(NamedTuple):
    """Numbers from low to high, both included; each of several, where the key holds several.

    Attributes:
      rising: whether each of several must be above the one before.
      fewest: entries, where the key holds several.
    """

    low: float
    high: float = 1e12
    rising: bool = False
    fewest: int = 0


_ABOVE_0 = Range(5e-324)  # the smallest number that there is
_COUNT, _AMOUNT, _SHARE = Range(1), Range(0), Range(0, 1)
RANGES = {
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.BASE_LR": _ABOVE_0,
    "SOLVER.BASE_LR_END": _AMOUNT,
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WEIGHT_DECAY": _AMOUNT,
    "SOLVER.WEIGHT_DECAY_NORM": _AMOUNT,
    "SOLVER.WEIGHT_DECAY_BIAS": _AMOUNT,
    "SOLVER.BIAS_LR_FACTOR": _AMOUNT,
    "SOLVER.GAMMA": _ABOVE_0,
    "SOLVER.STEPS": Range(1, rising=True),
    "SOLVER.NUM_DECAYS": _COUNT,
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _AMOUNT,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": _AMOUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _ABOVE_0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _ABOVE_0,
    "TEST.EVAL_PERIOD": _AMOUNT,
    "TEST.PRECISE_BN.NUM_ITER": _COUNT,
    "VIS_PERIOD": _AMOUNT,
    "DATALOADER.NUM_WORKERS": _AMOUNT,
    "INPUT.MIN_SIZE_TRAIN": Range(1, fewest=1),
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.MIN_SIZE_TEST": _AMOUNT,
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "MODEL.BACKBONE.FREEZE_AT": _AMOUNT,
    "MODEL.RESNETS.NUM_GROUPS": _COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _COUNT,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NUM_CLASSES": _COUNT,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _COUNT,
}
CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
}


def demand(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses values out of their range.

    Args:
      settings: see configuration.read.
      defaults: the defaults; what they hold is right.

    Raises:
      UserError: names the first key, its value, and what it must be.
    """
    for key, value in settings.items():
        if value == defaults.get(key):
            continue
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(
                f"{key} is {value!r}; it must be one of {', '.join(map(str, CHOICES[key]))}"
            )
        if key in RANGES and not _allowed(value, RANGES[key], defaults.get(key)):
            raise UserError(f"{key} is {value!r}; it must be {_words(key, defaults.get(key))}")


def _allowed(value: Any, span: Range, default: Any) -> bool:
    if not isinstance(default, (list, tuple)):
        return _is_number(value) and span.low <= value <= span.high
    return (
        isinstance(value, (list, tuple))
        and len(value) >= span.fewest
        and all(_is_number(x) and span.low <= x <= span.high for x in value)
        and not (span.rising and any(a >= b for a, b in zip(value, value[1:])))  # noqa: B905
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _words(key: str, default: Any) -> str:
    """'a number above 0', 'a whole number, at least 1', 'numbers, at least 1, each above ...'."""
    span = RANGES[key]
    noun = "a whole number" if isinstance(default, int) else "a number"
    if isinstance(default, (list, tuple)):
        noun = "one number or more" if span.fewest else "numbers"
    if span is _ABOVE_0:
        return f"{noun} above 0"
    ends = f"from {span.low} to {span.high}" if span is _SHARE else f"at least {span.low}"
    return f"{noun}, {ends}" + (", each above the one before" if span.rising else "")
