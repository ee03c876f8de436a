"""Feature pyramids whose levels run only on the canvases that need them.

Shapes: res_j [V*n, H/2^j, W/2^j, C_j] -> P_j [V*m, H/2^j, W/2^j, F]; V sides (side-major batch),
n canvases a side, m the canvases in the level's span.

Lin et al., 2017, with BN after every lateral and output convolution, no activation, nearest x2
top-down (design section 3). Parameter names are Detectron2's: lateral2..5, output2..5.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from mcl_jax.errors import UserError
from mcl_jax.models.layers import (
    Context,
    ConvNorm,
    Numerics,
    by_side,
    norm_group_sizes,
    upsample_nearest,
    xavier_uniform,
)

Array = jax.Array

COARSEST = 5  # P5, which level 0 reads; level s reads P_{5-s}
PYRAMID_LEVELS = 4

Span = tuple[int, int]


NECKS = ("fpn", "c4")


def make_neck(kind: str, features: int, numerics: Numerics) -> nn.Module:
    """The pyramid of `model.neck`; UserError lists the kinds there are."""
    if kind not in NECKS:
        raise UserError(f"model.neck {kind!r} is not one of {', '.join(NECKS)}")
    return FPN(features, numerics) if kind == "fpn" else ResizedMap()


def full_spans(canvases: int) -> list[Span]:
    """Every pyramid level on every canvas: the authors' computation."""
    return [(0, canvases)] * PYRAMID_LEVELS


def assigned_spans(counts: Sequence[int]) -> list[Span]:
    """Pyramid level P_{5-s} on the canvases of montage level s alone.

    Args:
      counts: canvases per montage level, level 0 first.
    """
    ends = [sum(counts[: s + 1]) for s in range(len(counts))]
    return [(end - n, end) for end, n in zip(ends, counts, strict=True)]


def present(spans: Sequence[Span]) -> tuple[int, ...]:
    """Levels whose span is not empty."""
    return tuple(s for s, (start, stop) in enumerate(spans) if start < stop)


class FPN(nn.Module):
    """Top-down pyramid over res2..res5."""

    features: int
    numerics: Numerics

    @nn.compact
    def __call__(
        self, stages: dict[str, Array], spans: Sequence[Span], *, sides: int, train: bool
    ) -> dict[str, Array]:
        """Computes P5, P4, ... for as many spans as are given.

        Args:
          stages: {'res2': [V*n, ...], ...}, side-major.
          spans: per pyramid level from P5 down, the canvases [start, stop) of each side whose
            output is wanted; starts must not decrease (coarser laterals feed finer ones).
          sides: V.
          train: see Context.

        Returns:
          {'P5': [V*(stop-start), h, w, F], 'P4': ..., ...}, without levels of empty span.
        """
        canvases = stages["res5"].shape[0] // sides
        pyramid: dict[str, Array] = {}
        top, top_start = None, 0
        for depth, (start, stop) in enumerate(spans):
            level = COARSEST - depth
            stage = by_side(stages[f"res{level}"], sides, start)
            context = Context(norm_group_sizes(sides, [canvases - start]), train=train)
            lateral = self._conv(f"lateral{level}", 1)(stage, context)
            if top is not None:
                coarser = by_side(top, sides, start - top_start)
                lateral = lateral + upsample_nearest(coarser)
            top, top_start = lateral, start
            context = Context(norm_group_sizes(sides, [stop - start]), train=train)
            within = by_side(lateral, sides, start=0, stop=stop - start)
            if start < stop:
                pyramid[f"P{level}"] = self._conv(f"output{level}", 3)(within, context)
        return pyramid

    def _conv(self, name: str, kernel_size: int) -> ConvNorm:
        return ConvNorm(
            self.features,
            self.numerics,
            kernel_size=kernel_size,
            relu=False,
            kernel_init=xavier_uniform,
            name=name,
        )


class ResizedMap(nn.Module):
    """A network without FPN: every level is the last map, resized (paper sections 3.2 and B).

    Bilinear with half-pixel centers, torch's F.interpolate(align_corners=False). No parameters.
    """

    def __call__(
        self, stages: dict[str, Array], spans: Sequence[Span], *, sides: int, train: bool
    ) -> dict[str, Array]:
        """As `FPN.__call__`, with C5 channels on every level."""
        pyramid = {}
        for depth, (start, stop) in enumerate(spans):
            level = COARSEST - depth
            res5 = by_side(stages["res5"], sides, start=start, stop=stop)
            size = stages[f"res{level}"].shape[1:3]
            if start < stop:
                shape = (res5.shape[0], *size, res5.shape[-1])
                pyramid[f"P{level}"] = jax.image.resize(res5, shape, "bilinear")
        return pyramid
