"""The exported networks in numpy, computed from the arrays of a written file: the self-check.

Shapes: images and maps [N, C, H, W], tokens [N, H, W, C]; kernels as torch has them, OIHW and
[out, in]. Everything is float64. Nothing of the training code is used but the cutting of windows.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from mcl_jax.convert.names import swin as swin_names
from mcl_jax.convert.names import table
from mcl_jax.convert.names.layouts import FileLayout
from mcl_jax.models import swin as swin_sizes
from mcl_jax.models import windows
from mcl_jax.models.backbone import Architecture, is_swin
from mcl_jax.models.resnet import blocks_of

# px. All maps of a Swin must be larger than its windows: on smaller ones, libraries differ in
# whether a window that covers the map is shifted.
IMAGE_SIZE = {True: 256, False: 64}
EPSILON = 1e-5  # of batch norms, in all libraries and in the method (design section 3)
ROI_SIZE = 7  # px of a pooled region, as detectors have it

Maps = dict[str, np.ndarray]


class Weights:
    """Arrays of a file by their path here below 'encoder/': 'backbone/stem/norm/scale'."""

    def __init__(self, model: Mapping[str, np.ndarray], layout: FileLayout):
        self.arrays, self.unfolds, self.indices = {}, False, {}
        for name, entry in layout.named.items():
            x = model[name].astype(np.float64)
            if entry.layout == "ours" and not name.endswith(swin_names.BIAS_TABLE):
                x = table.to_torch(x)
            path = entry.source.split("/encoder/", 1)[-1]
            self.arrays[path] = x
            self.unfolds |= entry.layout == "unfold"
            for buffer in entry.buffers:
                self.indices[path] = model[buffer]

    def __getitem__(self, path: str) -> np.ndarray:
        return self.arrays[path]

    def __contains__(self, path: str) -> bool:
        return path in self.arrays


def inputs(a: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """A fixed image [1, 3, H, W] and fixed pooled regions [2, F, 7, 7]."""
    rng, side = np.random.default_rng(0), IMAGE_SIZE[is_swin(a.backbone)]
    rois = rng.normal(size=(2, a.fpn_channels, ROI_SIZE, ROI_SIZE))
    return rng.normal(size=(1, 3, side, side)), rois


def features(weights: Weights, a: Architecture, parts: Sequence[str]) -> Maps:
    """{'res2', ..., 'res5'}, and with the parts 'fpn' and 'head' also {'P2', ..., 'P5'} and 'head'.

    A file without output norms for res2..res4 (classifiers) has those maps of a Swin left out.
    """
    images, rois = inputs(a)
    maps: Maps = {}
    if "backbone" in parts:
        backbone = swin if is_swin(a.backbone) else resnet
        maps = backbone(weights, a, images)
        if "fpn" in parts:
            maps |= fpn(weights, maps)
    if "head" in parts:
        for n in range(1, a.head_convs + 1):
            rois = np.maximum(conv_norm(weights, f"head/conv{n}", rois), 0)
        maps["head"] = rois
    return maps


def conv_norm(weights: Weights, path: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
    """Convolution with its batch norm by running statistics, or with its bias."""
    x = convolve(x, weights[f"{path}/kernel"], stride)
    if f"{path}/bias" in weights:
        return x + weights[f"{path}/bias"][:, None, None]
    scale, bias, mean, var = (
        weights[f"{path}/norm/{leaf}"] for leaf in ("scale", "bias", "mean", "var")
    )
    factor = scale / np.sqrt(var + EPSILON)
    return x * factor[:, None, None] + (bias - mean * factor)[:, None, None]


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """torch's conv2d with padding (k - 1) // 2."""
    k = kernel.shape[-1]
    pad = (k - 1) // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    return np.tensordot(patches, kernel, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def resnet(weights: Weights, a: Architecture, x: np.ndarray) -> Maps:
    """The stride is in the 3x3 convolution (in the first one of a basic block)."""
    x = np.maximum(conv_norm(weights, "backbone/stem", x=x, stride=2), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))  # after the ReLU nothing is below 0
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
    counts, bottleneck = blocks_of(a.backbone)
    strided = 2 if bottleneck else 1
    maps = {}
    for stage, count in enumerate(counts, start=2):
        for b in range(count):
            block = f"backbone/res{stage}/block{b}"
            stride = 2 if b == 0 and stage > 2 else 1
            y, depth = x, 3 if bottleneck else 2
            for n in range(1, depth + 1):
                y = conv_norm(
                    weights, f"{block}/conv{n}", x=y, stride=stride if n == strided else 1
                )
                y = y if n == depth else np.maximum(y, 0)
            if f"{block}/shortcut/kernel" in weights:
                x = conv_norm(weights, f"{block}/shortcut", x=x, stride=stride)
            x = np.maximum(x + y, 0)
        maps[f"res{stage}"] = x
    return maps


def fpn(weights: Weights, stages: Maps) -> Maps:
    """Lin et al., 2017: laterals, nearest x2 top-down, 3x3 outputs."""
    maps, top = {}, None
    for level in (5, 4, 3, 2):
        lateral = conv_norm(weights, f"fpn/lateral{level}", stages[f"res{level}"])
        top = lateral if top is None else lateral + top.repeat(2, 2).repeat(2, 3)
        maps[f"P{level}"] = conv_norm(weights, f"fpn/output{level}", top)
    return maps


def linear(weights: Weights, path: str, x: np.ndarray) -> np.ndarray:
    x = x @ weights[f"{path}/kernel"].T
    return x + weights[f"{path}/bias"] if f"{path}/bias" in weights else x


def layer_norm(weights: Weights, path: str, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    x = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + swin_sizes.LAYER_NORM_EPSILON)
    return x * weights[f"{path}/scale"] + weights[f"{path}/bias"]


def swin(weights: Weights, a: Architecture, images: np.ndarray) -> Maps:
    """Swin with the patch merging of the file's library."""
    size, patch = swin_sizes.size_of(a.backbone), swin_sizes.PATCH
    patches = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), (2, 3))
    patches = patches[:, :, ::patch, ::patch]
    x = np.tensordot(patches, weights["backbone/patch_embed/kernel"], ((1, 4, 5), (1, 2, 3)))
    x = layer_norm(weights, "backbone/patch_norm", x + weights["backbone/patch_embed/bias"])
    maps = {}
    for stage, depth in enumerate(size.depths, start=2):
        root = f"backbone/res{stage}"
        if stage > 2:
            x = layer_norm(weights, f"{root}/merge/norm", merge(x, unfolds=weights.unfolds))
            x = linear(weights, f"{root}/merge/reduction", x)
        for b in range(depth):
            block = f"{root}/block{b}"
            y = layer_norm(weights, f"{block}/norm1", x)
            x = x + attention(weights, f"{block}/attention", x=y, size=size, shifted=b % 2 == 1)
            y = linear(weights, f"{block}/mlp1", layer_norm(weights, f"{block}/norm2", x))
            y = y * (1 + error_function(y / math.sqrt(2))) / 2
            x = x + linear(weights, f"{block}/mlp2", y)
        if f"backbone/norm{stage}/scale" in weights:
            normed = layer_norm(weights, f"backbone/norm{stage}", x)
            maps[f"res{stage}"] = normed.transpose(0, 3, 1, 2)
    return maps


def error_function(x: np.ndarray) -> np.ndarray:
    """erf in float64, which numpy lacks."""
    with jax.enable_x64(True):
        return np.asarray(jax.scipy.special.erf(x))


def merge(x: np.ndarray, *, unfolds: bool) -> np.ndarray:
    """[N, H, W, C] -> [N, H/2, W/2, 4C]: a neighbor's channels side by side, rows varying first,
    or (MMDetection) a channel's neighbors, in reading order."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    axes = (0, 1, 3, 5, 2, 4) if unfolds else (0, 1, 3, 4, 2, 5)
    return x.transpose(axes).reshape(n, height // 2, width // 2, 4 * channels)


def attention(
    weights: Weights, path: str, x: np.ndarray, size: swin_sizes.Size, *, shifted: bool
) -> np.ndarray:
    """Attention within windows of maps that are larger than one."""
    w, (_, height, width, channels) = size.window, x.shape
    x = np.pad(x, ((0, 0), (0, -height % w), (0, -width % w), (0, 0)))
    padded, shift = x.shape[1:3], w // 2 if shifted else 0
    rolled = np.roll(x, (-shift, -shift), (1, 2))
    tokens = windows.split_windows(rolled, w)
    heads = swin_sizes.heads(size, channels)
    qkv = linear(weights, f"{path}/qkv", tokens)
    q, k, v = qkv.reshape(*tokens.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
    table_path = f"{path}/{swin_names.BIAS_TABLE}"
    index = weights.indices.get(table_path, windows.relative_position_index(w))
    bias = weights[table_path][index.reshape(w * w, w * w)].transpose(2, 0, 1)
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + bias
    if shifted:
        mask = windows.shift_mask(*padded, w, (shift, shift))
        by_map = logits.reshape(-1, mask.shape[0], *logits.shape[1:]) + mask[:, None]
        logits = by_map.reshape(logits.shape)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    y = (shares @ v).transpose(0, 2, 1, 3).reshape(tokens.shape)
    y = windows.join_windows(linear(weights, f"{path}/proj", y), w, *padded)
    return np.roll(y, (shift, shift), (1, 2))[:, :height, :width]
