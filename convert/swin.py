"""The name table of Swin backbones: every array as we, torchvision and timm call it.

Legend: as in convert/table.py; the relative position bias table is [positions, heads] everywhere
and is never transposed. Patch merging reads its four neighbours in the same order in all three.
"""

from collections.abc import Iterator
from typing import NamedTuple

from convert.table import Shape
from mcl_jax.models import swin
from mcl_jax.models.backbone import Architecture

ROOT = "params/encoder/backbone/"
BIAS_TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"  # a buffer of torchvision's beside every bias table


class Row(NamedTuple):
    """One array: path in the state, shape in our layout, others' names ('' if they have none)."""

    source: str
    shape: Shape
    torchvision: str
    timm: str


def rows(a: Architecture) -> Iterator[Row]:
    """Every array of the online backbone, in the order of torchvision's state_dict."""
    size = swin.architecture(a.backbone)
    yield from _layer(
        "patch_embed", "features.0.0", "patch_embed.proj", (swin.PATCH, swin.PATCH, 3, a.width)
    )
    yield from _norm("patch_norm", "features.0.2", "patch_embed.norm", a.width)
    for i, depth in enumerate(size.depths):
        stage, there, timm, channels = (
            swin.STAGES[i],
            f"features.{2 * i + 1}",
            f"layers.{i}",
            a.width * 2**i,
        )
        if i:
            merge = f"features.{2 * i}"
            yield Row(
                f"{ROOT}{stage}/merge/reduction/kernel",
                (2 * channels, channels),
                f"{merge}.reduction.weight",
                f"{timm}.downsample.reduction.weight",
            )
            yield from _norm(
                f"{stage}/merge/norm", f"{merge}.norm", f"{timm}.downsample.norm", 2 * channels
            )
        for b in range(depth):
            yield from _block(
                f"{stage}/block{b}", f"{there}.{b}", f"{timm}.blocks.{b}", channels, size
            )
    yield from _norm("norm5", "norm", "norm", a.width * 8)
    for i in range(3):
        yield from _norm(f"norm{i + 2}", "", "", a.width * 2**i)


def _block(ours: str, there: str, timm: str, channels: int, size: swin.Size) -> Iterator[Row]:
    hidden = channels * size.mlp_ratio
    positions = ((2 * size.window - 1) ** 2, swin.heads(size, channels))
    yield from _norm(f"{ours}/norm1", f"{there}.norm1", f"{timm}.norm1", channels)
    yield Row(
        f"{ROOT}{ours}/attention/{BIAS_TABLE}",
        positions,
        f"{there}.attn.{BIAS_TABLE}",
        f"{timm}.attn.{BIAS_TABLE}",
    )
    yield from _layer(
        f"{ours}/attention/qkv", f"{there}.attn.qkv", f"{timm}.attn.qkv", (channels, 3 * channels)
    )
    yield from _layer(
        f"{ours}/attention/proj", f"{there}.attn.proj", f"{timm}.attn.proj", (channels, channels)
    )
    yield from _norm(f"{ours}/norm2", f"{there}.norm2", f"{timm}.norm2", channels)
    yield from _layer(f"{ours}/mlp1", f"{there}.mlp.0", f"{timm}.mlp.fc1", (channels, hidden))
    yield from _layer(f"{ours}/mlp2", f"{there}.mlp.3", f"{timm}.mlp.fc2", (hidden, channels))


def _layer(ours: str, torchvision: str, timm: str, kernel: Shape) -> Iterator[Row]:
    yield Row(f"{ROOT}{ours}/kernel", kernel, f"{torchvision}.weight", f"{timm}.weight")
    yield Row(f"{ROOT}{ours}/bias", kernel[-1:], f"{torchvision}.bias", f"{timm}.bias")


def _norm(ours: str, torchvision: str, timm: str, channels: int) -> Iterator[Row]:
    for leaf, theirs in (("scale", "weight"), ("bias", "bias")):
        names = (f"{name}.{theirs}" if name else "" for name in (torchvision, timm))
        yield Row(f"{ROOT}{ours}/{leaf}", (channels,), *names)
