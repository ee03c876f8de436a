"""The name table of Swin backbones: every array as we, torchvision, timm and MMDetection call it.

Legend: as in convert/names/table.py; the relative position bias table is [positions, heads] everywhere
and is never transposed. Patch merging reads its four neighbors in the same order in all but
MMDetection, see `to_unfold`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mcl_jax.convert.names.table import Shape, from_torch, to_torch
from mcl_jax.models import swin
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.windows import relative_position_index

ROOT = "params/encoder/backbone/"
BIAS_TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"  # a buffer beside every bias table in torchvision and MMDetection


class Row(NamedTuple):
    """One array: path in the state, shape in our layout, others' names ('' if they have none).

    MMDetection's names are those of its backbone, without 'backbone.'.
    """

    source: str
    shape: Shape
    torchvision: str
    timm: str
    mmdet: str

    @property
    def merges(self) -> bool:
        """Whether its first axis runs over the four neighbors of a patch merging."""
        return "/merge/" in self.source


class Names(NamedTuple):
    """A module's name in torchvision, timm and MMDetection; '' where it does not exist."""

    torchvision: str
    timm: str
    mmdet: str

    def within(self, torchvision: str, timm: str, mmdet: str) -> "Names":
        """The name of a module inside."""
        inner = (torchvision, timm, mmdet)
        return Names(*(f"{a}.{b}" for a, b in zip(self, inner, strict=True)))

    def leaf(self, name: str) -> "Names":
        """The name of an array inside."""
        return Names(*(f"{module}.{name}" if module else "" for module in self))


def rows(a: Architecture) -> Iterator[Row]:
    """Every array of the online backbone, in the order of torchvision's state_dict."""
    size = swin.size_of(a.backbone)
    patches = Names("features.0.0", "patch_embed.proj", "patch_embed.projection")
    yield from _layer("patch_embed", patches, (swin.PATCH, swin.PATCH, 3, a.width))
    norm = Names("features.0.2", "patch_embed.norm", "patch_embed.norm")
    yield from _norm("patch_norm", norm, a.width)
    for i, depth in enumerate(size.depths):
        stage, channels = swin.STAGES[i], a.width * 2**i
        if i:
            # what begins a stage for us and for timm ends the one before in MMDetection
            merge = Names(
                f"features.{2 * i}", f"layers.{i}.downsample", f"stages.{i - 1}.downsample"
            )
            kernel = merge.within("reduction", "reduction", "reduction").leaf("weight")
            yield Row(f"{ROOT}{stage}/merge/reduction/kernel", (2 * channels, channels), *kernel)
            norm = merge.within("norm", "norm", "norm")
            yield from _norm(f"{stage}/merge/norm", norm, 2 * channels)
        for b in range(depth):
            block = Names(
                f"features.{2 * i + 1}.{b}", f"layers.{i}.blocks.{b}", f"stages.{i}.blocks.{b}"
            )
            yield from _block(f"{stage}/block{b}", block, channels=channels, size=size)
    yield from _norm("norm5", Names("norm", "norm", "norm3"), a.width * 8)
    for i in range(3):
        yield from _norm(f"norm{i + 2}", Names("", "", f"norm{i}"), a.width * 2**i)


def _block(ours: str, block: Names, channels: int, size: swin.Size) -> Iterator[Row]:
    hidden = channels * size.mlp_ratio
    positions = ((2 * size.window - 1) ** 2, swin.heads(size, channels))
    attention = block.within("attn", "attn", "attn.w_msa")
    yield from _norm(f"{ours}/norm1", block.within("norm1", "norm1", "norm1"), channels)
    bias_table = attention.leaf(BIAS_TABLE)
    yield Row(f"{ROOT}{ours}/attention/{BIAS_TABLE}", positions, *bias_table)
    for name, outputs in (("qkv", 3 * channels), ("proj", channels)):
        layer = attention.within(name, name, name)
        yield from _layer(f"{ours}/attention/{name}", layer, (channels, outputs))
    yield from _norm(f"{ours}/norm2", block.within("norm2", "norm2", "norm2"), channels)
    first = block.within("mlp.0", "mlp.fc1", "ffn.layers.0.0")
    yield from _layer(f"{ours}/mlp1", first, (channels, hidden))
    second = block.within("mlp.3", "mlp.fc2", "ffn.layers.1")
    yield from _layer(f"{ours}/mlp2", second, (hidden, channels))


def _layer(ours: str, names: Names, kernel: Shape) -> Iterator[Row]:
    yield Row(f"{ROOT}{ours}/kernel", kernel, *names.leaf("weight"))
    yield Row(f"{ROOT}{ours}/bias", kernel[-1:], *names.leaf("bias"))


def _norm(ours: str, names: Names, channels: int) -> Iterator[Row]:
    for leaf, theirs in (("scale", "weight"), ("bias", "bias")):
        yield Row(f"{ROOT}{ours}/{leaf}", (channels,), *names.leaf(theirs))


def position_index(row: Row) -> np.ndarray:
    """The index buffer [L, L] beside a bias table [(2 w - 1)^2, heads], for windows of L = w^2."""
    return relative_position_index((round(row.shape[0] ** 0.5) + 1) // 2)


# MMDetection's neighbors, left to right and top to bottom, by their number here (rows vary first).
_READING_ORDER = np.array([0, 2, 1, 3])


def to_unfold(array: np.ndarray) -> np.ndarray:
    """A patch merging's norm [4C] or kernel [4C, out] as MMDetection has it, in torch's layout.

    Here the C channels of a neighbor stand side by side, there the four neighbors of a channel
    (torch.nn.Unfold), in reading order.
    """
    neighbors = array.reshape(4, -1, *array.shape[1:])[_READING_ORDER]
    return to_torch(neighbors.swapaxes(0, 1).reshape(array.shape))


def from_unfold(array: np.ndarray) -> np.ndarray:
    """The exact inverse of `to_unfold`."""
    array = from_torch(array)
    channels = array.reshape(-1, 4, *array.shape[1:])
    return channels.swapaxes(0, 1)[np.argsort(_READING_ORDER)].reshape(array.shape)
