"""The learning rate of a step, and which images it sees: functions of settings and step alone.

So a run that was killed goes on as if nothing had happened, without a random state to restore.
Steps count from 0.
"""

import enum
import functools

import numpy as np

from mcl_jax.finetune.settings import FinetuneSettings

REFERENCE_BATCH = 16  # images for which `base_lr` is meant


class Draw(enum.IntEnum):
    """What numbers are drawn for. Values are part of a run's identity: append, never renumber."""

    INIT = 0
    ORDER = 1
    FLIP = 2
    STEP = 3  # torchvision's own draws: image sizes, anchors and regions that are learned from


def generator(seed: int, draw: Draw, number: int) -> np.random.Generator:
    """Random numbers of one kind of draw, at one step or for one image."""
    return np.random.default_rng([seed, int(draw), number])


def torch_seed(seed: int, draw: Draw, number: int) -> int:
    """What to give torch.manual_seed."""
    return int(generator(seed, draw, number).integers(2**63))


def learning_rate(settings: FinetuneSettings, step: int) -> float:
    """Linear warm-up, then falls by `decay_factor` at shares of the run.

    Source: Detectron2's WarmupMultiStepLR; the fall does not wait for the end of the warm-up.
    """
    lr = settings.base_lr * settings.batch_size / REFERENCE_BATCH
    if step < settings.warmup_steps:
        share = step / settings.warmup_steps
        lr *= settings.warmup_start * (1 - share) + share
    passed = sum(step >= round(share * settings.steps) for share in settings.decay_at)
    return lr * settings.decay_factor**passed


def image_at(seed: int, count: int, position: int) -> int:
    """Index of the image at a position of the endless shuffled stream: every epoch has all once."""
    epoch, place = divmod(position, count)
    return int(_order(seed, count, epoch)[place])


@functools.lru_cache(maxsize=2)
def _order(seed: int, count: int, epoch: int) -> np.ndarray:
    return generator(seed, Draw.ORDER, epoch).permutation(count)


def is_mirrored(settings: FinetuneSettings, position: int) -> bool:
    """Whether the image at this position of the stream is mirrored."""
    draw = generator(settings.seed, Draw.FLIP, position).random()
    return bool(draw < settings.flip_prob)
