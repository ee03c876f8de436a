"""Linear classifiers on given features: loss, SGD step, top-k. Pure functions.

Shapes: b rows of this device, F features, K classes, L learning rates, one classifier each;
features float32 [b, F]; labels int32 [b], -1 where a row is not to be counted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax import sharding

Array = jax.Array


class Classifiers(NamedTuple):
    """L classifiers and their momentum, at the same step.

    Attributes:
      step: int32 [], finished steps.
      params: {'kernel': float32 [L, F, K], 'bias': float32 [L, K]}.
      velocity: torch.optim.SGD's momentum buffers, as params.
    """

    step: Array
    params: dict[str, Array]
    velocity: dict[str, Array]


def new(count: int, features: int, classes: int) -> Classifiers:
    """L = `count` classifiers of zeros: the loss is convex, there is no symmetry to break."""
    params = {
        "kernel": jnp.zeros((count, features, classes)),
        "bias": jnp.zeros((count, classes)),
    }
    return Classifiers(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.zeros_like, params))


def learning_rates(
    lrs: Sequence[float], schedule: str, total_steps: int
) -> Callable[[Array], Array]:
    """step -> float32 [L]: `lrs` at step 0, by half a cosine to 0 at total_steps, or constant."""

    def at(step: Array) -> Array:
        start = jnp.asarray(lrs, jnp.float32)
        if schedule == "constant":
            return start
        return start * (1 + jnp.cos(jnp.pi * step / total_steps)) / 2

    return at


def logits(params: dict[str, Array], features: Array) -> Array:
    """float32 [L, b, K]."""
    products = jnp.einsum(
        "bf,lfk->lbk", features, params["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    return products + params["bias"][:, None]


def update(
    state: Classifiers,
    features: Array,
    labels: Array,
    lr: Array,
    *,
    momentum: float,
    weight_decay: float,
    axis_name: sharding.AxisName | None,
) -> tuple[Classifiers, dict[str, Array]]:
    """One step of SGD on the mean cross-entropy of the counted rows of all devices.

    As torch.optim.SGD: v <- momentum v + (g + weight_decay w), w <- w - lr v, bias included.

    Args:
      state: equal on all devices.
      features, labels: this device's.
      lr: float32 [L].
      axis_name: of the devices inside shard_map; None for one device.

    Returns:
      (new state, {'loss': float32 [L], 'train_top1': float32 [L]}) of before the step.
    """

    def total(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    counted = (labels >= 0).astype(features.dtype)
    share = counted / jnp.maximum(total(counted.sum()), 1)

    def loss(params):
        scores = logits(params, features)
        classes = jnp.maximum(labels, 0)[None, :, None]
        log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(scores), classes, 2)[..., 0]
        losses = -(log_likelihood * share).sum(1)
        right = (scores.argmax(2) == labels) * share
        return losses.sum(), {"loss": losses, "train_top1": right.sum(1)}

    params = state.params
    if axis_name is not None:  # each device's gradient is of its own rows until summed
        params = sharding.device_local(params, axis_name)
    grads, metrics = total(jax.grad(loss, has_aux=True)(params))

    def decayed(velocity, grad, weight):
        return momentum * velocity + (grad + weight_decay * weight)

    def stepped(weight, velocity):
        return weight - lr.reshape(-1, *[1] * (weight.ndim - 1)) * velocity

    velocity = jax.tree.map(decayed, state.velocity, grads, state.params)
    params = jax.tree.map(stepped, state.params, velocity)
    return Classifiers(state.step + 1, params, velocity), metrics


def hits(params: dict[str, Array], features: Array, labels: Array, k: int) -> Array:
    """int32 [L]: rows whose label is among the k highest logits; a diverged classifier has none.

    Equal logits rank by class number, so a constant classifier does not get every row right.
    """
    scores = logits(params, features)
    _, best = jax.lax.top_k(scores, k)
    right = (best == labels[:, None]).any(2) & jnp.isfinite(scores).all(2)
    return right.sum(1)
