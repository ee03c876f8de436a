"""InfoNCE of one (online level, target level) pair and its sum over pairs (paper section 3.2-3.3).

Shapes: online u [m, D], target v [B, D] (global, in image order), labels int32 [m] in [0, B);
M [S, S] matching matrix; V sides (q, k); S levels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax.errors import UserError

Array = jax.Array

MATCHING_MODES = ("a", "b", "c", "d")


def matching_matrix(mode: str, levels: int) -> np.ndarray:
    """The paper's four strategies (section 3.3, Figure 3) as a row-stochastic matrix.

    M[s, j] says how much online level s targets level j of the other side: (a) everything targets
    the largest view, (b) its own level, (c) adjacent levels |s - j| <= 1, (d) all levels.

    Returns:
      float64 [levels, levels].

    Raises:
      UserError: for another mode.

    Example:
      >>> matching_matrix("c", 3)[0].tolist()
      [0.5, 0.5, 0.0]
    """
    s, j = np.indices((levels, levels))
    if mode not in MATCHING_MODES:
        raise UserError(f"loss.matching {mode!r} is not one of {', '.join(MATCHING_MODES)}")
    mask = {"a": j == 0, "b": s == j, "c": abs(s - j) <= 1, "d": s >= 0}[mode].astype(float)
    return mask / mask.sum(1, keepdims=True)


def target_levels(matching: np.ndarray) -> int:
    """How many leading levels the target network must run so that every used column exists."""
    return int(np.flatnonzero(matching.any(0)).max()) + 1


def unit_rows(x: Array) -> Array:
    """L2-normalizes the last axis in float32 (or wider), torch's F.normalize with eps 1e-12.

    Example:
      >>> [f"{x:.2f}" for x in unit_rows(jnp.array([3.0, 4.0]))]
      ['0.60', '0.80']
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # max(sum of squares, eps^2) keeps the gradient finite at the zero vector
    squares = jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(squares)


def scaled_info_nce(
    online: Array, target: Array, labels: Array, temperature: float
) -> tuple[Array, dict[str, Array]]:
    """2 * tau * mean cross-entropy of u . v^T / tau (equation 2, scaled as released).

    Args:
      online: [m, D] L2-normalized predictions; gradients flow.
      target: [B, D] L2-normalized targets of all devices; gradients are stopped.
      labels: int [m] row of `target` that shows the same image.
      temperature: tau.

    Returns:
      (loss scalar, {'positive', 'negative': mean cosines, 'top1': retrieval accuracy}).

    Example:
      >>> u = unit_rows(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
      >>> loss, metrics = scaled_info_nce(u, u, jnp.array([0, 1]), temperature=0.2)
      >>> f"{loss:.4f}, {metrics['top1']:.0%}"
      '0.0027, 100%'
    """
    target = jax.lax.stop_gradient(target)
    cosines = jnp.matmul(online, target.T, precision=jax.lax.Precision.HIGHEST)
    logits = cosines / temperature
    positives = jnp.take_along_axis(cosines, labels[:, None], axis=1)[:, 0]
    cross_entropy = jax.nn.logsumexp(logits, axis=1) - positives / temperature
    m, b = cosines.shape
    metrics = {
        "positive": positives.mean(),
        "negative": (cosines.sum() - positives.sum()) / (m * max(b - 1, 1)),
        "top1": (jnp.argmax(cosines, axis=1) == labels).mean(),
    }
    return 2 * temperature * cross_entropy.mean(), metrics


def multi_level(
    online: Sequence[Array],
    targets: Sequence[Array],
    labels: Sequence[Array],
    *,
    matching: np.ndarray,
    weights: Sequence[float],
    pair_loss: Callable[[Array, Array, Array], tuple[Array, dict[str, Array]]],
) -> tuple[Array, dict[str, Array]]:
    """sum_sides sum_s w_s sum_j M[s, j] * pair_loss(u_s, v_j of the other side).

    Args:
      online: per level s [V, m_s, D] normalized predictions.
      targets: per level j [V, B, D] normalized targets in global image order.
      labels: per level s int [V, m_s] global image numbers.
      matching: [S, S] row-stochastic.
      weights: w_s per level.
      pair_loss: (u, v, labels) -> (loss, metrics), e.g. `scaled_info_nce` with its temperature.

    Returns:
      (loss, metrics): per level s 'loss/level{s}' (weighted, both sides), 'std/level{s}' (mean
      over dimensions of the features' standard deviation, 1/sqrt(D) when spread evenly, 0 when
      collapsed) and pair_loss's metrics averaged over sides and, by M, over target levels.

    Example:
      >>> x = unit_rows(jax.random.normal(jax.random.key(0), (2, 4, 8)))  # both sides, 4 images
      >>> loss, metrics = multi_level(
      ...     online=[x],
      ...     targets=[x],
      ...     labels=[jnp.tile(jnp.arange(4), (2, 1))],
      ...     matching=matching_matrix("a", 1),
      ...     weights=(1.0,),
      ...     pair_loss=lambda u, v, labels: scaled_info_nce(u, v, labels, temperature=0.2),
      ... )
      >>> sorted(metrics)
      ['loss/level0', 'negative/level0', 'positive/level0', 'std/level0', 'top1/level0']
    """
    total, metrics = jnp.zeros(()), {}
    for s, (u_both, labels_both) in enumerate(zip(online, labels, strict=True)):
        if u_both.shape[1] == 0:  # a level without sub-images (mosaic)
            continue
        level_loss, level_metrics = jnp.zeros(()), {}
        sides = u_both.shape[0]
        for side in range(sides):
            for j in np.flatnonzero(matching[s]):
                v = targets[j][sides - 1 - side]
                loss, pair = pair_loss(u_both[side], v, labels_both[side])
                share = float(matching[s, j])
                level_loss = level_loss + weights[s] * share * loss
                for name, value in pair.items():
                    level_metrics[name] = level_metrics.get(name, 0.0) + value * share / sides
        level_metrics["loss"] = level_loss
        level_metrics["std"] = u_both.std(1).mean()
        metrics |= {f"{name}/level{s}": value for name, value in level_metrics.items()}
        total = total + level_loss
    return total, metrics
