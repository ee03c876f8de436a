"""DetCo: MoCo v2 at four stages, between images and nine of their patches (Xie et al., 2021).

Shapes: b images of this device, V = 2 sides (q: query, k: key); images [V, b, H, H, 3]; patches
[V, b, 9, p, p, 3]; features per stage res2..res5 [b, D], of the whole image (the paper's g) and
of its patches (l); queues of both, per stage [K, D].

Where the paper is silent: the local crop is a crop of its own (not a part of the
global view) with the sides' augmentation but for its area; patches keep their cells' order unless
`shuffle_patches`; all MLPs share `projector_hidden`.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax.keys import Purpose
from mcl_jax.models.image_encoder import StageEmbeddings, StageEncoder
from mcl_jax.models.layers import Context
from mcl_jax.models.resnet import STAGES
from mcl_jax.objectives import contrast, queues
from mcl_jax.objectives.base import Variables
from mcl_jax.objectives.moco import KEY, QUERY, MoCo, draw_order, encoder_variables
from mcl_jax.views import jigsaw

Array = jax.Array


@dataclass(frozen=True)
class DetCoSettings:
    """The keys of `config.detco`; queue, temperature and norm are `config.moco`'s.

    Attributes:
      stage_weights: w of res2..res5 (equation 1; .1, .4, .7, 1).
      crop_size: px of the crop that is cut in 3 x 3 cells, a multiple of 3.
      patch_size: p, px of the random patch out of each cell.
      local_area: (low, high) of the share of the image that this crop covers.
      shuffle_patches: concatenate the nine features in a random order per image and side.
    """

    stage_weights: tuple[float, ...]
    crop_size: int
    patch_size: int
    local_area: tuple[float, float]
    shuffle_patches: bool


class Inputs(NamedTuple):
    """Both sides' views of one device."""

    images: Array  # [V, b, H, H, 3]
    patches: Array  # [V, b, 9, p, p, 3]
    order: Array  # int32 [b] of the key batch, read by shuffled BN alone


def stage_losses(
    u: StageEmbeddings, v: StageEmbeddings, queue: StageEmbeddings, temperature: float
) -> dict[str, dict[str, tuple[Array, dict[str, Array]]]]:
    """The three InfoNCE terms of every stage (equations 2, 4 and 5), unweighted.

    Args:
      u, v: unit query and key features, per stage [b, D].
      queue: per stage [K, D].
      temperature: tau.

    Returns:
      {stage: {'global': g<->g, 'local': l<->l, 'cross': local query <-> global key}}, each the
      (loss, metrics) of contrast.info_nce.
    """
    pairs = {
        "global": (u["global"], v["global"], queue["global"]),
        "local": (u["local"], v["local"], queue["local"]),
        "cross": (u["local"], v["global"], queue["global"]),
    }
    return {
        stage: {
            name: contrast.info_nce(*(features[stage] for features in pair), temperature)
            for name, pair in pairs.items()
        }
        for stage in STAGES
    }


@dataclass(frozen=True)
class DetCo(MoCo):
    """The method as pure functions over (params, state, inputs); queues and keys are MoCo's."""

    detco: DetCoSettings

    @property
    def encoder(self) -> StageEncoder:
        return StageEncoder(self.architecture, self.settings.numerics(self.numerics))

    def init(self, key: Array) -> Variables:
        """Parameters under 'encoder'; memory {'queue': StageEmbeddings [K, D], 'pointer'}."""
        encoder_key, queue_key = jax.random.split(key)
        side, patch = self.image_size, self.detco.patch_size
        images = jnp.zeros((1, side, side, 3))
        patches = jnp.zeros((1, jigsaw.PATCHES, patch, patch, 3))
        features, variables = self.encoder.init_with_output(
            encoder_key, images, patches, Context((1,), train=True)
        )
        memory = {
            "queue": queues.create_like(queue_key, self.settings.queue_size, features),
            "pointer": jnp.zeros((), jnp.int32),
        }
        return encoder_variables(variables, memory)

    def inputs(self, seed: Array, step: Array, batch: dict[str, Array], shard: Array) -> Inputs:
        """Per side one view and nine patches of another crop; arguments as in objectives.base."""
        (images,) = self.augmented(seed, step, batch=batch, shard=shard)
        patches = self._patches(
            self.group_keys(seed, step, shard=shard, purpose=Purpose.JIGSAW), batch
        )
        return Inputs(images, patches, draw_order(seed, step, shard=shard, images=images.shape[1]))

    def _patches(self, keys: Array, batch: dict[str, Array]) -> Array:
        """[V, b, 9, p, p, 3]: one crop per image and side, cut in cells, a patch out of each."""
        settings = self.detco
        split = partial(jax.random.split, num=3)
        crops_keys, positions_keys, orders_keys = jax.vmap(split, out_axes=1)(keys)
        views = dataclasses.replace(self.views, area=settings.local_area)
        (crops,) = self.make_views(crops_keys, batch, settings=views, image_size=settings.crop_size)
        sides, b = crops.shape[:2]
        images = sides * self.group_size

        def draw(positions_key: Array, order_key: Array) -> Array:
            sizes = (settings.crop_size, settings.patch_size)
            positions = jigsaw.draw_positions(positions_key, images, *sizes)
            if settings.shuffle_patches:
                positions = jigsaw.reorder(positions, jigsaw.draw_orders(order_key, images))
            return positions.reshape(sides, -1, *positions.shape[1:])

        positions = jax.vmap(draw, out_axes=1)(positions_keys, orders_keys)
        positions = positions.reshape(sides * b, *positions.shape[3:])
        patches = jigsaw.cut(crops.reshape(-1, *crops.shape[2:]), positions, settings.patch_size)
        return patches.reshape(sides, b, *patches.shape[1:])

    def pictures(self, inputs: Inputs) -> dict[str, Array]:
        """Rows of a picture of one device's inputs: both views, and the query's patches."""
        patches = inputs.patches[QUERY]
        return {
            "query": inputs.images[QUERY],
            "key": inputs.images[KEY],
            "patches of the query": patches.reshape(-1, *patches.shape[2:]),
        }

    def network_inputs(self, inputs: Inputs, side: int) -> tuple[Array, ...]:
        """Whole images and their patches."""
        return (inputs.images[side], inputs.patches[side])

    def compare(
        self, u: StageEmbeddings, keys: StageEmbeddings, queue: StageEmbeddings
    ) -> tuple[Array, dict[str, Array]]:
        """Equation 1 on this device's images: sum over stages of w (g<->g + l<->l + l<->g)."""
        total, metrics = self._weigh(
            stage_losses(u, keys, queue=queue, temperature=self.settings.temperature)
        )
        for s, stage in enumerate(reversed(STAGES)):
            metrics[f"std/level{s}"] = u["global"][stage].std(0).mean()
        return total, metrics

    def _weigh(self, terms: dict[str, Any]) -> tuple[Array, dict[str, Array]]:
        """Weighted sum, and metrics by level: level 0 is res5, level 3 res2.

        'loss' is a stage's weighted sum; positive, negative and top1 are those of g<->g, with a
        suffix (positive_local, positive_cross, ...) those of the other two terms.
        """
        total, metrics = jnp.zeros(()), {}
        weights = dict(zip(STAGES, self.detco.stage_weights, strict=True))
        for s, stage in enumerate(reversed(STAGES)):
            loss = weights[stage] * sum(term for term, _ in terms[stage].values())
            metrics[f"loss/level{s}"] = loss
            for pair, (_, values) in terms[stage].items():
                suffix = "" if pair == "global" else f"_{pair}"
                metrics |= {f"{name}{suffix}/level{s}": x for name, x in values.items()}
            total = total + loss
        return total, metrics
