"""The name table: every layer of the networks, as we call it and as every other library does.

Legend: convolution kernels are HWIO here and OIHW in torch; linear kernels [in, out] here and
[out, in] in torch; everything else is a vector [C]. A *source* is the path of an array in a
checkpoint's state, '/'-separated: 'params/encoder/backbone/stem/kernel'.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mcl_jax.models.backbone import Architecture, is_swin, stage_channels
from mcl_jax.models.pyramid import COARSEST, PYRAMID_LEVELS
from mcl_jax.models.resnet import blocks_of

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One kind of layer with the norm behind it, under the names of every library.

    A name is "layer|norm". The norm's part stands in for the last part of the layer's name:
    "0.conv1|bn1" is the layer 0.conv1 with the norm 0.bn1. Braces are filled in with the indices of
    the layer; '' says that a library has no such layer.

    Attributes:
      ours: path below `encoder` (rows of the predictor: below `predictor`).
      authors: name in the authors' code, below the network's name there.
      detectron2: short name in a Detectron2 model.
      mmdet: name in a detector of MMDetection.
      torchvision: name in a detector of torchvision.
      classifier: name in a classifier of torchvision or timm.
    """

    ours: str
    authors: str
    detectron2: str = ""
    mmdet: str = ""
    torchvision: str = ""
    classifier: str = ""


# fmt: off
# ruff: noqa: E501
#               ours                                 authors                          Detectron2                           MMDetection                             torchvision's detectors                      classifiers
STEM     = Row("backbone/stem",                     "0.conv1|bn1",                   "stem.conv1|conv1.norm",             "backbone.conv1|bn1",                   "backbone.body.conv1|bn1",                   "conv1|bn1")
CONV     = Row("backbone/res{r}/block{b}/conv{n}",  "0.layer{l}.{b}.conv{n}|bn{n}",  "res{r}.{b}.conv{n}|conv{n}.norm",   "backbone.layer{l}.{b}.conv{n}|bn{n}",  "backbone.body.layer{l}.{b}.conv{n}|bn{n}",  "layer{l}.{b}.conv{n}|bn{n}")
SHORTCUT = Row("backbone/res{r}/block{b}/shortcut", "0.layer{l}.{b}.downsample.0|1", "res{r}.{b}.shortcut|shortcut.norm", "backbone.layer{l}.{b}.downsample.0|1", "backbone.body.layer{l}.{b}.downsample.0|1", "layer{l}.{b}.downsample.0|1")
#              ours              authors                        Detectron2                            MMDetection                                    torchvision's detectors
LATERAL = Row("fpn/lateral{r}", "1.lateral_convs.{i}.conv|bn", "fpn_lateral{r}|fpn_lateral{r}.norm", "neck.lateral_convs.{i}.conv|bn",              "backbone.fpn.inner_blocks.{i}.0|1")
OUTPUT  = Row("fpn/output{r}",  "1.fpn_convs.{i}.conv|bn",     "fpn_output{r}|fpn_output{r}.norm",   "neck.fpn_convs.{i}.conv|bn",                  "backbone.fpn.layer_blocks.{i}.0|1")
HEAD    = Row("head/conv{n}",   "2.cls_convs.{i}.conv|bn",     "box_head.conv{n}|conv{n}.norm",      "roi_head.bbox_head.shared_convs.{i}.conv|bn", "roi_heads.box_head.{i}.0|1")
#                  ours                 authors
PROJECTOR_1 = Row("projector/linear1", "2.mlp.0|1")
PROJECTOR_2 = Row("projector/linear2", "2.mlp.3|4")
PREDICTOR_1 = Row("level{s}/linear1",  "{s}.mlp.0|1")
PREDICTOR_2 = Row("level{s}/linear2",  "{s}.mlp.3")
# fmt: on


class Leaf(NamedTuple):
    """One array of a layer or norm: collection of the state, our name and torch's."""

    collection: str
    ours: str
    torch: str


KERNEL = Leaf("params", "kernel", "weight")
BIAS = Leaf("params", "bias", "bias")
STATISTICS = (
    Leaf("batch_stats", "mean", "running_mean"),
    Leaf("batch_stats", "var", "running_var"),
)
NORM = (Leaf("params", "scale", "weight"), BIAS, *STATISTICS)


class Network(NamedTuple):
    """Where a network lives: paths of its parameters and statistics, and the authors' prefix."""

    params: str
    batch_stats: str
    authors: str


ONLINE = Network("params/encoder/", "batch_stats/encoder/", "encoder_q.")
TARGET = Network("target_params/", "target_batch_stats/", "encoder_k.")
PREDICTOR = Network("params/predictor/", "batch_stats/predictor/", "head.predictor.")


@dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint.

    Attributes:
      source: path in the state.
      shape: in our layout.
      authors, detectron2, mmdet, torchvision, classifier: its names, as the columns of `Row`;
        '' where a library has no such array.
    """

    source: str
    shape: Shape
    authors: str
    detectron2: str = ""
    mmdet: str = ""
    torchvision: str = ""
    classifier: str = ""

    @property
    def torch_shape(self) -> Shape:
        return tuple(self.shape[axis] for axis in TO_TORCH[len(self.shape)])


# Axes by number of dimensions: HWIO <-> OIHW, [in, out] <-> [out, in], vectors as they are.
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def to_torch(array: np.ndarray) -> np.ndarray:
    """Our layout -> torch's, as a C-contiguous copy of the same dtype."""
    return np.array(array.transpose(TO_TORCH[array.ndim]), order="C")


def from_torch(array: np.ndarray) -> np.ndarray:
    """torch's layout -> ours; the exact inverse of `to_torch`."""
    return np.array(array.transpose(FROM_TORCH[array.ndim]), order="C")


def online(a: Architecture) -> list[Tensor]:
    """Tensors of the online encoder, in the order of the authors' modules."""
    return _encoder(a, ONLINE)


def target(a: Architecture) -> list[Tensor]:
    """Tensors of the target encoder; the authors' code alone has one."""
    return [Tensor(t.source, t.shape, t.authors) for t in _encoder(a, TARGET)]


def predictor(a: Architecture, levels: int) -> list[Tensor]:
    """Tensors of the online predictors of `levels` montage levels."""
    outer, hidden = a.projector_out, a.predictor_hidden
    tensors = []
    for s in range(levels):
        tensors += _linear(PREDICTOR_1, {"s": s}, shape=(outer, hidden), network=PREDICTOR)
        tensors += _norm(
            "level{s}/norm1", PREDICTOR_1, indices={"s": s}, channels=hidden, network=PREDICTOR
        )
        tensors += _linear(PREDICTOR_2, {"s": s}, shape=(hidden, outer), network=PREDICTOR)
    return tensors


def _encoder(a: Architecture, network: Network) -> list[Tensor]:
    tensors = []
    for row, indices, shape in (*_backbone(a), *_neck_and_head(a)):
        tensors.append(_layer(row, KERNEL, indices=indices, shape=shape, network=network))
        tensors += _norm(
            f"{row.ours}/norm", row, indices=indices, channels=shape[-1], network=network
        )
    hidden, outer = a.projector_hidden, a.projector_out
    tensors += _linear(PROJECTOR_1, {}, shape=(a.fpn_channels, hidden), network=network)
    tensors += _norm("projector/norm1", PROJECTOR_1, indices={}, channels=hidden, network=network)
    tensors += _linear(PROJECTOR_2, {}, shape=(hidden, outer), network=network)
    # The last norm has no affine parameters (design section 3).
    norm = _norm(
        "projector/norm2",
        PROJECTOR_2,
        indices={},
        channels=outer,
        network=network,
        leaves=STATISTICS,
    )
    return tensors + norm


def _backbone(a: Architecture) -> Iterator[tuple[Row, dict[str, int], Shape]]:
    """(row, indices, kernel shape HWIO) of every convolution; r: res level, l: torch's layer, b:
    block, n: convolution from 1. Nothing for a Swin, whose rows stand in convert/names/swin.py."""
    if is_swin(a.backbone):
        return
    yield STEM, {}, (7, 7, 3, a.width)
    counts, bottleneck = blocks_of(a.backbone)
    inputs = a.width
    for i, count in enumerate(counts):
        features = a.width * 2**i
        outputs = 4 * features if bottleneck else features
        for b in range(count):
            indices = {"r": i + 2, "l": i + 1, "b": b}
            kernels = [(3, 3, inputs, features), (3, 3, features, outputs)]
            if bottleneck:
                kernels = [(1, 1, inputs, features), (3, 3, features, features)]
                kernels += [(1, 1, features, outputs)]
            for n, shape in enumerate(kernels, start=1):
                yield CONV, indices | {"n": n}, shape
            if b == 0 and (i > 0 or inputs != outputs):
                yield SHORTCUT, indices, (1, 1, inputs, outputs)
            inputs = outputs


def _neck_and_head(a: Architecture) -> Iterator[tuple[Row, dict[str, int], Shape]]:
    """As `_backbone`; r: pyramid level, n: convolution from 1, i: index in others' ModuleList."""
    finest = COARSEST - PYRAMID_LEVELS + 1
    for i, outputs in enumerate(stage_channels(a)):
        yield LATERAL, {"r": finest + i, "i": i}, (1, 1, outputs, a.fpn_channels)
    for i in range(PYRAMID_LEVELS):
        yield OUTPUT, {"r": finest + i, "i": i}, (3, 3, a.fpn_channels, a.fpn_channels)
    for i in range(a.head_convs):
        yield HEAD, {"n": i + 1, "i": i}, (3, 3, a.fpn_channels, a.fpn_channels)


def _layer(
    row: Row, leaf: Leaf, indices: Mapping[str, int], shape: Shape, network: Network
) -> Tensor:
    """An array of a layer itself."""
    names = [column.partition("|")[0] for column in row[1:]]
    return _tensor(row.ours, names, leaf=leaf, indices=indices, shape=shape, network=network)


def _linear(
    row: Row, indices: Mapping[str, int], shape: Shape, network: Network
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a linear layer."""
    kernel = _layer(row, KERNEL, indices=indices, shape=shape, network=network)
    return kernel, _layer(row, BIAS, indices=indices, shape=shape[1:], network=network)


def _norm(
    ours: str,
    row: Row,
    indices: Mapping[str, int],
    channels: int,
    network: Network,
    leaves: tuple[Leaf, ...] = NORM,
) -> list[Tensor]:
    """The arrays of the norm behind a layer; `ours` is its own path."""
    names = []
    for column in row[1:]:
        layer, _, norm = column.partition("|")
        *parents, _ = layer.split(".")
        names.append(".".join([*parents, norm]) if column else "")
    return [
        _tensor(ours, names, leaf=leaf, indices=indices, shape=(channels,), network=network)
        for leaf in leaves
    ]


def _tensor(
    ours: str,
    names: Sequence[str],
    leaf: Leaf,
    indices: Mapping[str, int],
    shape: Shape,
    network: Network,
) -> Tensor:
    """One array; `names` are those of its layer or norm, in the order of `Row`'s columns."""
    source = f"{getattr(network, leaf.collection)}{ours}/{leaf.ours}".format(**indices)
    authors, *others = (f"{n}.{leaf.torch}".format(**indices) if n else "" for n in names)
    return Tensor(source, shape, f"{network.authors}{authors}", *others)
