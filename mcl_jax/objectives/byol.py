"""BYOL: predicting the target network's view of the same image (Grill et al., 2020).

Shapes: b images of this device, V = 2 sides (q, k); images [V*b, H, H, 3] side-major; online
predictions and target embeddings [V, b, D].
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax import losses
from mcl_jax.models.heads import MLP
from mcl_jax.models.image_encoder import ImageEncoder, normed_mlp
from mcl_jax.models.layers import Context
from mcl_jax.objectives.base import Common, Outcome, Variables
from mcl_jax.sharding import AxisName
from mcl_jax.state import TrainState

Array = jax.Array

SIDES = 2  # each is online against the other's target (symmetric loss)


class Inputs(NamedTuple):
    """Both sides' views of one device."""

    images: Array  # [V*b, H, H, 3]


def symmetric_loss(online: Array, target: Array) -> tuple[Array, dict[str, Array]]:
    """Sum over both directions of the mean of 2 - 2 cos(prediction, other side's target).

    Grill et al., equation 2: the squared distance of unit vectors.

    Args:
      online: [2, b, D] L2-normalized predictions; gradients flow.
      target: [2, b, D] L2-normalized target embeddings; gradients are stopped.

    Returns:
      (loss scalar, metrics of these b images: 'positive' and 'negative' mean cosines with the
      same and with other images, 'top1' retrieval accuracy among them, 'std' mean over dimensions
      of the predictions' standard deviation, 0 when collapsed). Only the positives are trained.
    """
    other = jax.lax.stop_gradient(target)[::-1]
    loss = (2 - 2 * (online * other).sum(-1)).mean(1).sum()
    highest = jax.lax.Precision.HIGHEST
    cosines = jnp.einsum("vid,vjd->vij", jax.lax.stop_gradient(online), other, precision=highest)
    b = online.shape[1]
    positives = jnp.diagonal(cosines, axis1=1, axis2=2)
    metrics = {
        "positive": positives.mean(),
        "negative": (cosines.sum() - positives.sum()) / (SIDES * b * max(b - 1, 1)),
        "top1": (jnp.argmax(cosines, axis=2) == jnp.arange(b)).mean(),
        "std": online.std(1).mean(),
    }
    return loss, metrics


@dataclass(frozen=True)
class BYOL(Common):
    """The method as pure functions over (params, state, inputs); settings are `config.model`'s.

    The predictor has the projector's sizes (`projector_hidden`, `projector_out`): BYOL uses one
    MLP design for both.
    """

    @property
    def encoder(self) -> ImageEncoder:
        return ImageEncoder(self.architecture, self.numerics, normed_projector=True)

    @property
    def predictor(self) -> MLP:
        return normed_mlp(self.architecture, self.numerics)

    def init(self, key: Array) -> Variables:
        """Parameters and statistics under 'encoder' and 'predictor'; no memory."""
        encoder_key, predictor_key = jax.random.split(key)
        context = Context((1,), train=True)
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        encoder = self.encoder.init(encoder_key, images, context)
        embedding = jnp.zeros((1, self.architecture.projector_out))
        predictor = self.predictor.init(predictor_key, embedding, context)
        collections = {
            name: {"encoder": encoder[name], "predictor": predictor[name]}
            for name in ("params", "batch_stats")
        }
        return Variables(**collections, memory={})

    def inputs(self, seed: Array, step: Array, batch: dict[str, Array], shard: Array) -> Inputs:
        """Two augmented views per image; arguments as in objectives.base."""
        (views,) = self.augmented(seed, step, batch=batch, shard=shard)
        return Inputs(views.reshape(-1, *views.shape[2:]))

    def pictures(self, inputs: Inputs) -> dict[str, Array]:
        """Rows of a picture of one device's inputs."""
        q, k = inputs.images.reshape(SIDES, -1, *inputs.images.shape[1:])
        return {"side q": q, "side k": k}

    def loss(
        self, params: Any, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[Array, Outcome]:
        """Symmetric loss of this device's images; each side is a norm group."""
        context = Context((inputs.images.shape[0] // SIDES,) * SIDES, train=True)
        target = {"params": state.target_params, "batch_stats": state.target_batch_stats}
        mutable = {"mutable": ["batch_stats"]}
        v, target_stats = self.encoder.apply(target, inputs.images, context, **mutable)

        def online(name: str) -> dict[str, Any]:
            return {"params": params[name], "batch_stats": state.batch_stats[name]}

        u, encoder_stats = self.encoder.apply(online("encoder"), inputs.images, context, **mutable)
        u, predictor_stats = self.predictor.apply(online("predictor"), u, context, **mutable)
        u, v = (losses.unit_rows(x).reshape(SIDES, -1, x.shape[-1]) for x in (u, v))
        loss, metrics = symmetric_loss(u, v)
        stats = {
            "encoder": encoder_stats["batch_stats"],
            "predictor": predictor_stats["batch_stats"],
        }
        metrics = {f"{name}/level0": value for name, value in metrics.items()}
        outcome = Outcome(stats, target_stats["batch_stats"], memory=state.memory, metrics=metrics)
        return loss, outcome
