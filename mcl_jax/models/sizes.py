"""What the names of backbones stand for. Imports nothing, so that a name can be checked at once."""

from typing import NamedTuple


class Size(NamedTuple):
    """What a Swin's name stands for besides the embedding dimension.

    Attributes:
      depths: blocks per stage; every second one is shifted by half a window.
      window: tokens on a side.
      head_channels: C / heads of the published networks; narrower maps have one head.
      mlp_ratio: hidden / C.
    """

    depths: tuple[int, int, int, int]
    window: int
    head_channels: int
    mlp_ratio: int


# name -> (blocks per stage, bottleneck?)
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}

# With width 96 swin_t has heads (3, 6, 12, 24).
SWINS = {"swin_t": Size((2, 2, 6, 2), window=7, head_channels=32, mlp_ratio=4)}
