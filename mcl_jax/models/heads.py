"""RoI head, projector and predictors, and the cutting of feature maps into sub-image tiles.

Shapes: tiles [M, t, t, F] with t = H/32; embeddings [M, D].
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcl_jax.models.layers import (
    Context,
    ConvNorm,
    Linear,
    Numerics,
    kaiming_fan_in,
    kaiming_fan_out,
)

Array = jax.Array

predictor_init = nn.initializers.normal(0.01)


def cut_tiles(features: Array, grid: int) -> Array:
    """[N, grid*t, grid*t, F] -> [N*grid*grid, t, t, F], tiles of a canvas in row-major order.

    The exact counterpart of `montage.assemble`: tile i of the result saw sub-image i's window
    (paper section 3.1: 'similar to the RoI pooling operator').
    """
    n, height, width, channels = features.shape
    t_h, t_w = height // grid, width // grid
    x = features.reshape(n, grid, t_h, grid, t_w, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n * grid * grid, t_h, t_w, channels)


def pick_tiles(tiles: Array, cells: Array) -> Array:
    """[N*g*g, t, t, F], int [N] -> [N, t, t, F]: one tile of each canvas."""
    per_canvas = tiles.reshape(cells.shape[0], -1, *tiles.shape[1:])
    return jax.vmap(lambda of_canvas, cell: of_canvas[cell])(per_canvas, cells)


class RoIHead(nn.Module):
    """conv3x3-BN-ReLU repeated; Detectron2's box head without its fully connected layer."""

    features: int
    convs: int
    numerics: Numerics

    @nn.compact
    def __call__(self, tiles: Array, context: Context) -> Array:
        """[M, t, t, F] -> [M, t, t, F]."""
        for i in range(1, self.convs + 1):
            tiles = ConvNorm(
                self.features, self.numerics, kernel_init=kaiming_fan_out, name=f"conv{i}"
            )(tiles, context)
        return tiles


class MLP(nn.Module):
    """Linear, BN, ReLU, Linear (and a BN without affine where `last_norm`)."""

    hidden: int
    out: int
    last_norm: bool
    kernel_init: Callable
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        """[M, C] -> [M, out]."""
        dtype = self.numerics.dtype
        x = Linear(self.hidden, dtype, self.kernel_init, name="linear1")(x)
        x = self.numerics.norm("norm1", relu=True)(x, context.norm_groups, train=context.train)
        x = Linear(self.out, dtype, self.kernel_init, name="linear2")(x)
        if self.last_norm:
            x = self.numerics.norm("norm2", affine=False)(
                x, context.norm_groups, train=context.train
            )
        return x


def pool(tiles: Array) -> Array:
    """Global average pool [M, t, t, F] -> [M, F] in float32 (or wider)."""
    return tiles.astype(jnp.promote_types(tiles.dtype, jnp.float32)).mean((1, 2))


def projector(hidden: int, out: int, numerics: Numerics) -> MLP:
    """The MLP after the pooled head; its last BN has no affine parameters."""
    return MLP(
        hidden, out, last_norm=True, kernel_init=kaiming_fan_in, numerics=numerics, name="projector"
    )


class Predictors(nn.Module):
    """One predictor MLP per montage level (online network only): level0, level1, ..."""

    hidden: int
    out: int
    numerics: Numerics

    @nn.compact
    def __call__(self, embeddings: tuple[Array, ...], *, train: bool) -> tuple[Array, ...]:
        """Per level [V, m_s, D] -> [V, m_s, out]; each side is a norm group."""
        predicted = []
        for s, x in enumerate(embeddings):
            sides, rows, width = x.shape
            if rows == 0:  # a level without sub-images (mosaic)
                predicted.append(jnp.zeros((sides, 0, self.out), x.dtype))
                continue
            mlp = MLP(
                self.hidden,
                self.out,
                last_norm=False,
                kernel_init=predictor_init,
                numerics=self.numerics,
                name=f"level{s}",
            )
            y = mlp(x.reshape(-1, width), Context((rows,) * sides, train=train))
            predicted.append(y.reshape(sides, rows, -1))
        return tuple(predicted)
