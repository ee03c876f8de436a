"""The name table of Swin backbones: every array as we call it and as torchvision calls it.

Legend: as in convert/table.py; the relative position bias table is [positions, heads] on both
sides and is never transposed. Patch merging reads its four neighbours in the same order in both.
"""

from collections.abc import Iterator

from convert.table import Shape
from mcl_jax.models import swin
from mcl_jax.models.backbone import Architecture

ROOT = "params/encoder/backbone/"
BIAS_TABLE = "relative_position_bias_table"
INDEX = "relative_position_index"  # a buffer of torchvision's beside every bias table

# source, shape in our layout, torchvision's name ('' where torchvision has no such layer)
Row = tuple[str, Shape, str]


def rows(a: Architecture) -> Iterator[Row]:
    """Every array of the online backbone, in the order of torchvision's state_dict."""
    size = swin.architecture(a.backbone)
    yield from _layer("patch_embed", "features.0.0", (swin.PATCH, swin.PATCH, 3, a.width))
    yield from _norm("patch_norm", "features.0.2", a.width)
    for i, depth in enumerate(size.depths):
        stage, channels = swin.STAGES[i], a.width * 2**i
        if i:
            name = f"features.{2 * i}"
            kernel = (2 * channels, channels)
            yield f"{ROOT}{stage}/merge/reduction/kernel", kernel, f"{name}.reduction.weight"
            yield from _norm(f"{stage}/merge/norm", f"{name}.norm", 2 * channels)
        for b in range(depth):
            yield from _block(f"{stage}/block{b}", f"features.{2 * i + 1}.{b}", channels, size)
    yield from _norm("norm5", "norm", a.width * 8)
    for i in range(3):
        yield from _norm(f"norm{i + 2}", "", a.width * 2**i)


def _block(ours: str, theirs: str, channels: int, size: swin.Size) -> Iterator[Row]:
    hidden = channels * size.mlp_ratio
    table_shape = ((2 * size.window - 1) ** 2, swin.heads(size, channels))
    yield from _norm(f"{ours}/norm1", f"{theirs}.norm1", channels)
    yield f"{ROOT}{ours}/attention/{BIAS_TABLE}", table_shape, f"{theirs}.attn.{BIAS_TABLE}"
    yield from _layer(f"{ours}/attention/qkv", f"{theirs}.attn.qkv", (channels, 3 * channels))
    yield from _layer(f"{ours}/attention/proj", f"{theirs}.attn.proj", (channels, channels))
    yield from _norm(f"{ours}/norm2", f"{theirs}.norm2", channels)
    yield from _layer(f"{ours}/mlp1", f"{theirs}.mlp.0", (channels, hidden))
    yield from _layer(f"{ours}/mlp2", f"{theirs}.mlp.3", (hidden, channels))


def _layer(ours: str, theirs: str, kernel: Shape) -> Iterator[Row]:
    yield f"{ROOT}{ours}/kernel", kernel, f"{theirs}.weight"
    yield f"{ROOT}{ours}/bias", kernel[-1:], f"{theirs}.bias"


def _norm(ours: str, theirs: str, channels: int) -> Iterator[Row]:
    for leaf, torch_leaf in (("scale", "weight"), ("bias", "bias")):
        yield f"{ROOT}{ours}/{leaf}", (channels,), f"{theirs}.{torch_leaf}" if theirs else ""
