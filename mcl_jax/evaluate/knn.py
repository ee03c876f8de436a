"""Weighted k-nearest-neighbour accuracy of frozen features (Wu et al., 2018).

Shapes: bank [n, F] with labels int [n]; queries [m, F]; C classes.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mcl_jax import augment, colour, losses, sharding
from mcl_jax.models.encoder import Encoder
from mcl_jax.models.layers import Numerics

Array = jax.Array


def centre_view(canvas: Array, extent: Array, image_size: int, mean: Any, std: Any) -> Array:
    """Shorter side to 8/7 of H, centre crop of H px, normalised: torchvision's test transform.

    Args:
      canvas: uint8 [C, C, 3].
      extent: int32 [2] valid (height, width) in px.
      image_size: H.

    Returns:
      float32 [H, H, 3].
    """
    side = jnp.maximum(1, jnp.round(extent.min() * 224 / 256)).astype(jnp.int32)
    box = jnp.concatenate([(extent - side) // 2, jnp.stack([side, side])])
    planes = augment.crop(canvas, box, False, image_size=image_size)
    return colour.normalize(planes, mean, std).transpose(0, 2, 1)


def feature_function(config: Mapping[str, Any], encoder: Encoder, mesh: Mesh) -> Callable:
    """Compiled once: (params, batch_stats, image, extent) -> float32 [b, C5] average-pooled res5.

    Args:
      config: the run's.
      encoder: the network; statistics are the running ones.
      mesh: images are split over it.
    """
    numerics = encoder.numerics
    local = encoder.clone(
        numerics=Numerics(numerics.dtype, numerics.bn_momentum, numerics.bn_epsilon, None)
    )
    view = partial(
        centre_view,
        image_size=config["data"]["image_size"],
        mean=config["augment"]["mean"],
        std=config["augment"]["std"],
    )

    def features(params, batch_stats, image, extent):
        variables = {"params": params, "batch_stats": batch_stats}
        return local.apply(variables, jax.vmap(view)(image, extent), method="stage5")

    everywhere = sharding.replicated(mesh)
    split = NamedSharding(mesh, sharding.BATCH_SPEC)
    return jax.jit(
        features, in_shardings=(everywhere, everywhere, split, split), out_shardings=everywhere
    )


def collect(
    features: Callable, params: Any, batch_stats: Any, batches: Iterable, mesh: Mesh, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of at most `limit` valid, labelled images of an evaluation pass."""
    rows, labels, seen = [], [], 0
    for batch in batches:
        placed = sharding.put_batch(
            {k: batch[k] for k in ("image", "extent", "label", "valid")}, mesh
        )
        out = np.asarray(features(params, batch_stats, placed["image"], placed["extent"]))
        label = _everywhere(placed["label"], mesh)
        keep = _everywhere(placed["valid"], mesh) & (label >= 0)
        rows.append(out[keep])
        labels.append(label[keep])
        seen += int(keep.sum())
        if seen >= limit:
            break
    return np.concatenate(rows)[:limit], np.concatenate(labels)[:limit]


def _everywhere(x: Array, mesh: Mesh) -> np.ndarray:
    """A split array as numpy on every process."""
    return np.asarray(jax.jit(lambda v: v, out_shardings=sharding.replicated(mesh))(x))


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    neighbours: int,
    temperature: float,
    chunk: int = 1024,
) -> np.ndarray:
    """Votes exp(cosine / temperature) of the nearest neighbours.

    Args:
      bank: float [n, F]; bank_labels: int [n].
      queries: float [m, F].
      neighbours: k, at most n.
      temperature: of the vote.
      chunk: queries per matrix product, bounds memory at chunk x n floats.

    Returns:
      int [m] predicted classes.
    """
    bank = losses.normalize(jnp.asarray(bank))
    votes_of = jax.nn.one_hot(bank_labels, int(bank_labels.max()) + 1)
    k = min(neighbours, bank.shape[0])

    @jax.jit
    def vote(q):
        cosines = jnp.matmul(losses.normalize(q), bank.T, precision=jax.lax.Precision.HIGHEST)
        best, index = jax.lax.top_k(cosines, k)
        weights = jnp.exp((best - best[:, :1]) / temperature)  # a common factor changes no vote
        return (weights[..., None] * votes_of[index]).sum(1).argmax(-1)

    chunks = [queries[i : i + chunk] for i in range(0, len(queries), chunk)]
    return np.concatenate([np.asarray(vote(jnp.asarray(q))) for q in chunks])
