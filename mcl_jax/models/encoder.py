"""The encoder that is pre-trained and exported: backbone, FPN, RoI head; plus its projector.

Shapes: canvases [V*n, H, W, 3], side-major; spans: per montage level s the canvases [start, stop)
of each side on which it is read; m_s its sub-images on one side: 4^s for every canvas of the span,
or one where `cells` picks it; embeddings per level [V, m_s, D].
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.heads import Predictors, RoIHead, cut_tiles, pick_tiles, pool, projector
from mcl_jax.models.layers import Context, Numerics, norm_group_sizes
from mcl_jax.models.pyramid import COARSEST, Span, full_spans, make_neck

Array = jax.Array


class Encoder(nn.Module):
    """Backbone -> pyramid -> tiles -> RoI head -> projector (paper section 3.2, equation 1)."""

    architecture: Architecture
    numerics: Numerics

    def setup(self):
        a = self.architecture
        self.backbone = make_backbone(a, self.numerics)
        self.fpn = make_neck(a.neck, a.fpn_channels, self.numerics)
        self.head = RoIHead(a.fpn_channels, a.head_convs, self.numerics)
        self.projector = projector(a.projector_hidden, a.projector_out, self.numerics)

    def __call__(
        self,
        canvases: Array,
        spans: Sequence[Span],
        *,
        sides: int,
        full: bool,
        train: bool,
        cells: Sequence[Array | None] | None = None,
    ) -> tuple[Array, ...]:
        """Embeds every sub-image.

        Args:
          canvases: [V*n, H, W, 3] normalized float images.
          spans: per level the canvases that hold its sub-images; starts must not decrease. An
            empty span is a level without sub-images.
          sides: V.
          full: run all four pyramid levels and the head on every canvas as the authors do, or
            (False) only what level s reads, P_{5-s}. Batch statistics differ, nothing else.
          train: batch (True) or running (False) normalization statistics.
          cells: per level None, if all 4^s cells of a canvas are its sub-images, or the one cell
            of each canvas that is, int [V, stop - start] in row-major order.

        Returns:
          Per montage level s the projections [V, m_s, D] of its sub-images.
        """
        computed, regions = self._regions(
            canvases, spans, sides=sides, full=full, train=train, cells=cells
        )
        projected = self._by_level(self.projector, regions, sides=sides, train=train)
        return _within_spans(projected, spans, computed)

    def regions(
        self, canvases: Array, spans: Sequence[Span], *, sides: int, full: bool, train: bool
    ) -> tuple[Array, ...]:
        """As `__call__`, without the projector: pooled RoI features float32 [V, m_s, F]."""
        computed, regions = self._regions(canvases, spans, sides=sides, full=full, train=train)
        return _within_spans(regions, spans, computed)

    def _regions(
        self,
        canvases: Array,
        spans: Sequence[Span],
        *,
        sides: int,
        full: bool,
        train: bool,
        cells: Sequence[Array | None] | None = None,
    ) -> tuple[Sequence[Span], list[Array | None]]:
        """The spans that were computed, and per level the pooled head features (None: empty)."""
        n = canvases.shape[0] // sides
        stages = self.backbone(canvases, Context(norm_group_sizes(sides, [n]), train=train))
        computed = full_spans(n) if full else spans
        return computed, self._pooled(stages, computed, sides=sides, train=train, cells=cells)

    def _pooled(
        self,
        stages: Mapping[str, Array],
        computed: Sequence[Span],
        *,
        sides: int,
        train: bool,
        cells: Sequence[Array | None] | None = None,
    ) -> list[Array | None]:
        """Per level the pooled head features of its tiles (None: empty)."""
        pyramid = self.fpn(stages, computed, sides=sides, train=train)
        tiles: list[Array | None] = []
        for depth in range(len(computed)):
            features = pyramid.get(f"P{COARSEST - depth}")
            x = None if features is None else cut_tiles(features, 2**depth)
            cell = cells[depth] if cells is not None and depth < len(cells) else None
            if x is not None and cell is not None:
                x = pick_tiles(x, cell.reshape(-1))
            tiles.append(None if x is None else x.reshape(sides, -1, *x.shape[1:]))
        return self._by_level(
            lambda x, context: pool(self.head(x, context)), tiles, sides=sides, train=train
        )

    def _by_level(
        self, layer: Callable, levels: list[Array | None], *, sides: int, train: bool
    ) -> list[Array | None]:
        """Runs a layer that all levels share as one batch, one norm group per (side, level).

        They run P2..P5 of side q, then of side k: the order in which the authors' code
        updates the shared head's running statistics.
        """
        present = [s for s, x in enumerate(levels) if x is not None]
        finest_first = [levels[s] for s in reversed(present)]
        sizes = [x.shape[1] for x in finest_first]
        batch = jnp.concatenate(finest_first, axis=1)
        context = Context(norm_group_sizes(sides, sizes), train=train)
        x = layer(batch.reshape(-1, *batch.shape[2:]), context)
        x = x.reshape(sides, -1, *x.shape[1:])
        result: list[Array | None] = [None] * len(levels)
        start = 0
        for s, size in zip(reversed(present), sizes, strict=True):
            result[s] = x[:, start : start + size]
            start += size
        return result

    def features(self, images: Array, *, train: bool = False) -> dict[str, Array]:
        """res2..res5 and P2..P5 of plain images [N, H, W, 3], as a detector would see them."""
        n = images.shape[0]
        stages = self.backbone(images, Context((n,), train=train))
        return stages | self.fpn(stages, full_spans(n), sides=1, train=train)

    def box_head(self, rois: Array) -> Array:
        """RoI head with running statistics on pooled regions [M, h, w, F]."""
        return self.head(rois, Context((rois.shape[0],), train=False))

    def stage5(self, images: Array, *, train: bool = False) -> Array:
        """Average-pooled res5 [N, C5]: what a classifier reads, and the kNN monitor."""
        return pool(self.backbone(images, Context((images.shape[0],), train=train))["res5"])

    def stages(self, images: Array) -> dict[str, Array]:
        """res2..res5 of images [N, H, W, 3] with running statistics."""
        return self.backbone(images, Context((images.shape[0],), train=False))

    def region(self, stages: Mapping[str, Array], level: int) -> Array:
        """Pooled head features [N, F] of P_{5-level}, the mean over the 4^level tiles of a canvas.

        With running statistics; what montage level `level` is trained on, before the projector.

        Args:
          stages: of canvases, as `stages` gives them.
          level: of the montage.
        """
        n = stages["res5"].shape[0]
        spans = [(0, 0)] * level + [(0, n)]
        regions = self._pooled(stages, spans, sides=1, train=False)
        return regions[level].reshape(n, 4**level, -1).mean(1)


def _within_spans(
    levels: Sequence[Array | None], spans: Sequence[Span], computed: Sequence[Span]
) -> tuple[Array, ...]:
    """Cuts the sub-images of `spans` out of what was computed on wider ones."""
    some = next(x for x in levels if x is not None)
    cut = []
    for x, (start, stop), (first, last) in zip(levels, spans, computed, strict=False):
        if x is None:
            x = jnp.zeros((some.shape[0], 0, some.shape[-1]), some.dtype)
        else:
            per_canvas = x.shape[1] // (last - first)
            x = x[:, (start - first) * per_canvas : (stop - first) * per_canvas]
        cut.append(x)
    return tuple(cut)


def predictors(architecture: Architecture, numerics: Numerics) -> Predictors:
    """The online network's predictors, parameters `level0`..`level{S-1}`."""
    return Predictors(architecture.predictor_hidden, architecture.projector_out, numerics)
