"""LARS / SGD / AdamW with masks by parameter path; learning-rate and EMA schedules.

Formulas: design section 3, Optimizer, and You et al., 2017 (LARS). Schedules map an int step to a
float32 scalar and are pure, so they also serve the plots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Schedule = Callable[[Array], Array]


@dataclass(frozen=True)
class OptimizerSettings:
    """The keys of `config.optimizer`; units and sources stand in configs/base.py."""

    name: str
    base_lr: float
    final_lr: float
    epochs: float
    warmup_epochs: float
    warmup_start: float
    warmup_shape: str
    momentum: float
    weight_decay: float
    trust_coefficient: float
    trust_denominator: str
    excluded: str
    clip_norm: float


def is_excluded(path: tuple[str, ...], rule: str) -> bool:
    """Whether a parameter gets neither weight decay nor trust ratio.

    Args:
      path: keys from the root of the parameter tree.
      rule: 'norm_and_bias' excludes every bias and norm scale. 'authors' reproduces the released
        code's regular expression, which misses the scales of shortcut norms and MLP norms. 'none'
        excludes nothing (MoCo, torchvision). Swin's position biases count as biases.
    """
    leaf = path[-1]
    if rule == "none":
        return False
    if leaf in ("bias", "relative_position_bias_table"):
        return True
    if leaf != "scale":
        return False
    missed = "shortcut" in path or "norm1" in path or "norm2" in path
    return rule == "norm_and_bias" or not missed


def excluded_mask(params: Any, rule: str) -> Any:
    """Tree of bools like `params`: True where no decay and no trust ratio apply."""

    def decide(path, _):
        return is_excluded(tuple(str(key.key) for key in path), rule)

    return jax.tree_util.tree_map_with_path(decide, params)


def learning_rate(settings: OptimizerSettings, batch_size: int, steps_per_epoch: int) -> Schedule:
    """Linear warm-up to base_lr * B / 256, cosine to final_lr at the last step.

    warmup_shape 'sequential' (paper section 4.1): the cosine starts after the warm-up.
    'multiplied' (released code): the cosine runs from step 0 and the warm-up multiplies it.
    The released code floors B / 256 (learning rate 0 below B = 256); ours divides.
    """
    peak = settings.base_lr * batch_size / 256
    total = max(1, round(settings.epochs * steps_per_epoch))
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total)
    sequential = settings.warmup_shape == "sequential"

    def schedule(step: Array) -> Array:
        start = warmup if sequential else 0
        progress = jnp.clip((step - start) / max(total - start, 1), 0.0, 1.0)
        cosine = (
            settings.final_lr + (peak - settings.final_lr) * (1 + jnp.cos(jnp.pi * progress)) / 2
        )
        warmup_progress = jnp.clip(step / max(warmup, 1), 0.0, 1.0) if warmup else 1.0
        return cosine * (settings.warmup_start + (1 - settings.warmup_start) * warmup_progress)

    return schedule


def ema_momentum(base: float, final: float, total_steps: int) -> Schedule:
    """m = final - (final - base) (cos(pi k / K) + 1) / 2 at step k of K (Grill et al., 2020)."""

    def schedule(step: Array) -> Array:
        progress = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        return final - (final - base) * (jnp.cos(jnp.pi * progress) + 1) / 2

    return schedule


def scale_by_lars(eta: float, decay: float, excluded: Any) -> optax.GradientTransformation:
    """eta |w| / (|g| + decay |w|) * (g + decay w), the LARS paper's and the authors' local rate.

    optax.scale_by_trust_ratio divides by |g + decay w| instead. Excluded leaves pass unchanged.
    A zero weight keeps its zero rate, as in the released code. So does a weight that no loss reads
    (FPN levels beyond S): torch's optimizers skip parameters without a gradient.
    """

    def update(updates, state, params):
        def leaf(g, w, skip):
            if skip:
                return g
            w_norm, g_norm = jnp.linalg.norm(w.ravel()), jnp.linalg.norm(g.ravel())
            denominator = g_norm + decay * w_norm
            rate = eta * w_norm / jnp.where(denominator > 0, denominator, 1.0)
            # without a gradient, decay alone would shrink the weight at the full local rate
            return jnp.where(g_norm > 0, rate, 0.0) * (g + decay * w)

        return jax.tree.map(leaf, updates, params, excluded), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def create(settings: OptimizerSettings, params: Any, lr: Schedule) -> optax.GradientTransformation:
    """Clip by global norm, then the optimizer; momentum buffers contain the learning rate.

    Args:
      settings: see OptimizerSettings.
      params: the parameter tree (shapes are enough), for the masks.
      lr: learning rate per step.
    """
    excluded = excluded_mask(params, settings.excluded)
    decayed = jax.tree.map(lambda skip: not skip, excluded)
    clip_norm = settings.clip_norm
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity()
    if settings.name == "adamw":
        adamw = optax.adamw(lr, weight_decay=settings.weight_decay, mask=decayed)
        return optax.chain(clip, adamw)
    decay = optax.add_decayed_weights(settings.weight_decay, mask=decayed)
    heavy_ball = (optax.scale_by_learning_rate(lr), optax.trace(settings.momentum))
    if settings.name == "sgd":
        return optax.chain(clip, decay, *heavy_ball)
    if settings.trust_denominator == "optax":
        trust = optax.scale_by_trust_ratio(trust_coefficient=settings.trust_coefficient)
        return optax.chain(clip, decay, optax.masked(trust, decayed), *heavy_ball)
    rate = scale_by_lars(settings.trust_coefficient, settings.weight_decay, excluded)
    return optax.chain(clip, rate, *heavy_ball)
