"""ResNet 18/34/50/101 in torch's layout, returning the four stages that an FPN reads.

Shapes: images [N, H, W, 3] -> res2 [N, H/4, W/4, C2], ..., res5 [N, H/32, W/32, C5] with
C = width * (1, 2, 4, 8) * expansion (expansion 1 for 18/34, 4 for 50/101).

He et al., 2016, as torchvision builds it: stride in the 3x3, 7x7 stem with padding 3, max-pool
padded (1, 1), no zero-initialized last norm (design section 3). Parameter names are Detectron2's.
"""

import flax.linen as nn
import jax

from mcl_jax.errors import UserError
from mcl_jax.models.layers import Context, ConvNorm, Numerics
from mcl_jax.models.pooling import max_pool
from mcl_jax.models.sizes import RESNETS as ARCHITECTURES

Array = jax.Array

STAGES = ("res2", "res3", "res4", "res5")


def blocks_of(name: str) -> tuple[tuple[int, ...], bool]:
    """(blocks per stage, bottleneck) of a name; UserError lists the names there are."""
    if name not in ARCHITECTURES:
        raise UserError(f"model.backbone {name!r} is not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


class Block(nn.Module):
    """Basic (3x3, 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1) residual block."""

    features: int
    stride: int
    bottleneck: bool
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        out_features = self.features * (4 if self.bottleneck else 1)
        common = {"numerics": self.numerics}
        if self.bottleneck:
            y = ConvNorm(self.features, kernel_size=1, name="conv1", **common)(x, context)
            y = ConvNorm(self.features, stride=self.stride, name="conv2", **common)(y, context)
            last_conv = ConvNorm(out_features, kernel_size=1, relu=False, name="conv3", **common)
        else:
            y = ConvNorm(self.features, stride=self.stride, name="conv1", **common)(x, context)
            last_conv = ConvNorm(out_features, relu=False, name="conv2", **common)
        y = last_conv(y, context)
        if self.stride != 1 or x.shape[-1] != out_features:
            x = ConvNorm(
                out_features,
                kernel_size=1,
                stride=self.stride,
                relu=False,
                name="shortcut",
                **common,
            )(x, context)
        return nn.relu(x + y)


class Stage(nn.Module):
    """A sequence of blocks; the first one carries the stride."""

    features: int
    blocks: int
    stride: int
    bottleneck: bool
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array, context: Context) -> Array:
        block = self.numerics.block(Block)
        for i in range(self.blocks):
            x = block(
                self.features,
                self.stride if i == 0 else 1,
                self.bottleneck,
                self.numerics,
                name=f"block{i}",
            )(x, context)
        return x


class ResNet(nn.Module):
    """Backbone; `width` is the stem's number of channels (64 in the published networks)."""

    name_of_architecture: str
    width: int
    numerics: Numerics

    @nn.compact
    def __call__(self, images: Array, context: Context) -> dict[str, Array]:
        """images [N, H, W, 3] float -> {'res2': ..., ..., 'res5': ...}."""
        blocks, bottleneck = blocks_of(self.name_of_architecture)
        stem = ConvNorm(
            self.width, self.numerics, kernel_size=7, stride=2, pool=max_pool, name="stem"
        )
        x = stem(images, context)
        features = {}
        for i, (stage, count) in enumerate(zip(STAGES, blocks, strict=True)):
            x = Stage(
                self.width * 2**i,
                count,
                stride=1 if i == 0 else 2,
                bottleneck=bottleneck,
                numerics=self.numerics,
                name=stage,
            )(x, context)
            features[stage] = x
        return features
