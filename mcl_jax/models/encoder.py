"""The encoder that is pre-trained and exported: backbone, FPN, RoI head; plus its projector.

Shapes: canvases [V*n, H, W, 3], side-major, and within a side ordered by montage level;
counts (n_0, ..., n_{S-1}) canvases per level; embeddings per level [V, n_s*4^s, D].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax.models.heads import Predictors, RoIHead, cut_tiles, pool, projector
from mcl_jax.models.layers import Context, Numerics, group_sizes
from mcl_jax.models.pyramid import COARSEST, FPN, assigned_spans, full_spans
from mcl_jax.models.resnet import ResNet

Array = jax.Array


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks; the fields are the keys of `config.model`."""

    backbone: str
    width: int
    fpn_channels: int
    head_convs: int
    projector_hidden: int
    projector_out: int
    predictor_hidden: int


class Encoder(nn.Module):
    """Backbone -> FPN -> tiles -> RoI head -> projector (paper section 3.2, equation 1)."""

    architecture: Architecture
    numerics: Numerics

    def setup(self):
        a = self.architecture
        self.backbone = ResNet(a.backbone, a.width, self.numerics)
        self.fpn = FPN(a.fpn_channels, self.numerics)
        self.head = RoIHead(a.fpn_channels, a.head_convs, self.numerics)
        self.projector = projector(a.projector_hidden, a.projector_out, self.numerics)

    def __call__(
        self, canvases: Array, counts: Sequence[int], sides: int, full: bool, train: bool
    ) -> tuple[Array, ...]:
        """Embeds every sub-image.

        Args:
          canvases: [V*n, H, W, 3] normalised float images.
          counts: canvases per montage level of one side; they sum to n.
          sides: V.
          full: run all four pyramid levels and the head on every canvas as the authors do, or
            (False) only what level s reads, P_{5-s}. Batch statistics differ, nothing else.
          train: batch (True) or running (False) normalisation statistics.

        Returns:
          Per montage level s the projections [V, n_s*4^s, D] of its sub-images.
        """
        n = sum(counts)
        stages = self.backbone(canvases, Context(group_sizes(sides, [n]), train))
        spans = full_spans(n) if full else assigned_spans(counts)
        pyramid = self.fpn(stages, spans, sides, train)
        tiles = [
            cut_tiles(pyramid[f"P{COARSEST - depth}"], 2**depth) for depth in range(len(spans))
        ]
        projected = self._project(tiles, sides, train)
        wanted = assigned_spans(counts)
        return tuple(
            projected[s][:, (start - spans[s][0]) * 4**s : (stop - spans[s][0]) * 4**s]
            for s, (start, stop) in enumerate(wanted)
        )

    def _project(self, tiles: list[Array], sides: int, train: bool) -> list[Array]:
        """Head and projector on all levels' tiles as one batch, one group per (side, level).

        Groups run P2..P5 of side q, then of side k: the order in which the authors' code
        updates the shared head's running statistics.
        """
        sizes = [x.shape[0] // sides for x in tiles]
        finest_first = [x.reshape(sides, -1, *x.shape[1:]) for x in reversed(tiles)]
        batch = jnp.concatenate(finest_first, axis=1)
        batch = batch.reshape(-1, *batch.shape[2:])
        context = Context(group_sizes(sides, sizes[::-1]), train)
        x = self.projector(pool(self.head(batch, context)), context)
        x = x.reshape(sides, -1, x.shape[-1])
        ends = [sum(sizes[s:]) for s in range(len(sizes))]
        return [x[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def features(self, images: Array, train: bool = False) -> dict[str, Array]:
        """res2..res5 and P2..P5 of plain images [N, H, W, 3], as a detector would see them."""
        n = images.shape[0]
        stages = self.backbone(images, Context((n,), train))
        return stages | self.fpn(stages, full_spans(n), 1, train)

    def box_head(self, rois: Array) -> Array:
        """RoI head with running statistics on pooled regions [M, h, w, F]."""
        return self.head(rois, Context((rois.shape[0],), False))

    def stage5(self, images: Array) -> Array:
        """Average-pooled res5 [N, C5] with running statistics: the features of the kNN monitor."""
        return pool(self.backbone(images, Context((images.shape[0],), False))["res5"])


def predictors(architecture: Architecture, numerics: Numerics) -> Predictors:
    """The online network's predictors, parameters `level0`..`level{S-1}`."""
    return Predictors(architecture.predictor_hidden, architecture.projector_out, numerics)
