"""Which backbone a config names; all return {'res2': [N, H/4, W/4, C2], ..., 'res5': ...}."""

from dataclasses import dataclass

import flax.linen as nn

from mcl_jax.errors import UserError
from mcl_jax.models import resnet, swin
from mcl_jax.models.layers import Numerics


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
    neck: str
    drop_path: float


def is_swin(name: str) -> bool:
    """Whether a name is one of models/swin.py."""
    return name in swin.ARCHITECTURES


def check_backbone(name: str) -> None:
    """UserError listing the names there are, for another one."""
    names = (*resnet.ARCHITECTURES, *swin.ARCHITECTURES)
    if name not in names:
        raise UserError(f"model.backbone {name!r} is not one of {', '.join(names)}")


def make_backbone(
    architecture: Architecture, numerics: Numerics, name: str | None = None
) -> nn.Module:
    """The module; called as backbone(images [N, H, W, 3], context)."""
    a = architecture
    check_backbone(a.backbone)
    if is_swin(a.backbone):
        return swin.Swin(a.backbone, a.width, drop_path=a.drop_path, numerics=numerics, name=name)
    return resnet.ResNet(a.backbone, a.width, numerics, name=name)


def stage_channels(architecture: Architecture) -> tuple[int, ...]:
    """Channels of res2..res5."""
    check_backbone(architecture.backbone)
    expansion = 1
    if not is_swin(architecture.backbone):
        _, bottleneck = resnet.blocks_of(architecture.backbone)
        expansion = 4 if bottleneck else 1
    return tuple(architecture.width * 2**i * expansion for i in range(4))
