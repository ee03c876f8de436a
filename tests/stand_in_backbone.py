"""A backbone of four convolutions, for tests of what stands behind a backbone."""

import flax.linen as nn

from mcl_jax.models import encoder
from mcl_jax.models.layers import ConvNorm, Numerics
from mcl_jax.models.resnet import STAGES


class OneConvolutionAStage(nn.Module):
    """Stands in for a ResNet: the same strides."""

    numerics: Numerics

    @nn.compact
    def __call__(self, images, context):
        stages, x = {}, images
        for stage, stride in zip(STAGES, (4, 2, 2, 2), strict=True):
            convolution = ConvNorm(4, self.numerics, kernel_size=1, stride=stride, name=stage)
            x = stages[stage] = convolution(x, context)
        return stages


def make_stand_in(_, numerics):
    """In place of `models.backbone.make_backbone`."""
    return OneConvolutionAStage(numerics)


def use_stand_in_backbone(patch):
    """For a pytest.MonkeyPatch: networks with an FPN or C4 neck are built on it."""
    patch.setattr(encoder, "make_backbone", make_stand_in)
