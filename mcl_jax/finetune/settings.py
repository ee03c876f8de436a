"""Everything that decides the result of a fine-tuning run, with unit and range, and its flags.

Lengths are in px of the images as the detector sees them, unless a key says otherwise. The run's
result.json holds all keys.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from mcl_jax.errors import UserError

DETECTORS = ("fasterrcnn", "maskrcnn", "retinanet")
OPTIMIZERS = ("sgd", "adamw")
BACKBONES = ("resnet18", "resnet34", "resnet50")
GROUPS = 32  # of RetinaNet's group norms, as in torchvision


def _key(default: Any, words: str, least: float = 0, most: float = float("inf")) -> Any:
    """A key with its range; `least` and `most` are allowed values, of tuples for every entry."""
    return dataclasses.field(
        default=default, metadata={"words": words, "least": least, "most": most}
    )


def _choice(choices: tuple[str, ...], words: str) -> Any:
    return dataclasses.field(default=choices[0], metadata={"words": words, "choices": choices})


@dataclass(frozen=True)
class FinetuneSettings:
    """The keys; each is a flag of the same name. Defaults follow Detectron2's 1x schedule."""

    detector: str = _choice(DETECTORS, "torchvision's v2 detector")
    backbone: str = _choice(BACKBONES[::-1], "of the detector")
    fpn_channels: int = _key(256, "of FPN and heads; what the run was pre-trained with", 8)
    head_convs: int = _key(4, "convolutions of the box head", 0, 10)
    head_features: int = _key(1024, "of the box head's linear layer", 1)
    smallest_anchor: int = _key(32, "px, side; doubles from level to level", 1)
    roi_batch: int = _key(512, "regions an image from which the box head learns", 1)
    proposals_train: int = _key(2000, "of the RPN an image in training", 1)
    proposals_test: int = _key(1000, "of the RPN an image in testing", 1)

    min_sizes: tuple[int, ...] = _key(
        (640, 672, 704, 736, 768, 800),
        "px, short sides drawn from in training; the last one in testing",
        32,
    )
    max_size: int = _key(1333, "px, longest side", 32)
    flip_prob: float = _key(0.5, "of mirroring a training image", 0, 1)
    labels: int | None = _key(
        default=None,
        words="labeled images: the first so many, or drawn by --labels_seed; all",
        least=1,
    )
    labels_seed: int | None = _key(
        default=None, words="draws them; smaller draws are part of larger ones"
    )

    steps: int = _key(90_000, "of training", 1)
    batch_size: int = _key(16, "images a step", 1)
    optimizer: str = _choice(OPTIMIZERS, "SGD as in the papers; AdamW for short runs")
    base_lr: float = _key(0.02, "peak learning rate per 16 images (RetinaNet: 0.01)")
    momentum: float = _key(0.9, "of SGD; of AdamW, beta1", 0, 1)
    weight_decay: float = _key(1e-4, "of everything but norms")
    warmup_steps: int = _key(1000, "linear")
    warmup_start: float = _key(1e-3, "share of the learning rate at step 0", 0, 1)
    decay_at: tuple[float, ...] = _key(
        (2 / 3, 8 / 9), "shares of the steps after which the learning rate falls", 0, 1
    )
    decay_factor: float = _key(0.1, "by which it falls", 0, 1)
    clip_norm: float = _key(0.0, "largest gradient norm; 0: no limit")
    seed: int = _key(0, "of new layers, order and augmentation")

    eval_images: int | None = _key(
        default=None, words="the first so many test images; all without it", least=1
    )
    eval_batch_size: int = _key(8, "images at once in testing", 1)
    score_threshold: float = _key(0.05, "least score of a detection", 0, 1)
    nms_iou: float = _key(0.5, "overlap above which the weaker detection goes", 0, 1)
    max_detections: int = _key(100, "an image", 1)
    area_bounds: tuple[float, ...] = _key(
        (32.0, 96.0), "px of the annotated image: sides of small and of medium squares", 1
    )

    def __post_init__(self):
        """UserError for a value out of its range."""
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if not self.min_sizes or max(self.min_sizes) > self.max_size:
            raise UserError(f"--max_size {self.max_size} must be at least all of --min_sizes")
        if len(self.area_bounds) != 2 or self.area_bounds[0] >= self.area_bounds[1]:
            raise UserError(f"--area_bounds {_text(self.area_bounds)}: give two rising numbers")
        if self.detector == "retinanet" and self.fpn_channels % GROUPS:
            raise UserError(
                f"--fpn_channels {self.fpn_channels}: RetinaNet's group norms need a multiple of "
                f"{GROUPS}"
            )


def _check(field: dataclasses.Field, value: Any) -> None:
    flag, meta = f"--{field.name} {_text(value)}", field.metadata
    if "choices" in meta:
        if value not in meta["choices"]:
            raise UserError(f"{flag} is none of {', '.join(meta['choices'])}")
        return
    for x in value if isinstance(value, tuple) else () if value is None else (value,):
        if not meta["least"] <= x <= meta["most"]:
            raise UserError(f"{flag} must be {_range(meta)}")


def _range(meta: Any) -> str:
    if meta["most"] == float("inf"):
        return f"at least {meta['least']:g}"
    return f"from {meta['least']:g} to {meta['most']:g}"


def _text(value: Any) -> str:
    return ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else str(value)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every key of `FinetuneSettings`."""
    for field in dataclasses.fields(FinetuneSettings):
        meta = field.metadata
        words = f"{meta['words']} ({_text(field.default)})".replace(" (None)", "")
        if "choices" in meta:
            parser.add_argument(f"--{field.name}", default=field.default, help=words)
        else:
            parser.add_argument(
                f"--{field.name}", type=_reader(field.type), default=field.default, help=words
            )


def _reader(annotation: Any) -> Any:
    """Text -> a value of this type; argparse words the ValueError."""
    kind = float if "float" in str(annotation) else int
    if "tuple" not in str(annotation):
        return kind

    def numbers(text: str) -> tuple:
        return tuple(kind(x) for x in text.split(","))

    return numbers


def as_json(settings: FinetuneSettings) -> dict[str, Any]:
    """Key -> value, tuples as lists: what JSON and checkpoints hold."""
    values = dataclasses.asdict(settings)
    return {key: list(x) if isinstance(x, tuple) else x for key, x in values.items()}
