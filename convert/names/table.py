"""The name table: every layer of the networks, as we call it and as others call it.

Legend: convolution kernels are HWIO here and OIHW in torch; linear kernels [in, out] here and
[out, in] in torch; everything else is a vector [C]. A *source* is the path of an array in a
checkpoint's state, '/'-separated: 'params/encoder/backbone/stem/kernel'.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mcl_jax.models.backbone import Architecture, is_swin, stage_channels
from mcl_jax.models.pyramid import COARSEST, PYRAMID_LEVELS
from mcl_jax.models.resnet import architecture

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One kind of layer; braces are filled in with the indices of the layer.

    Attributes:
      ours: path below `encoder` (rows of the predictor: below `predictor`).
      detectron2: short name in a Detectron2 model; '' where Detectron2 has no such layer.
      authors: name of the convolution or linear layer in the authors' code.
      authors_norm: name there of the norm that belongs to it.
    """

    ours: str
    detectron2: str
    authors: str
    authors_norm: str


# fmt: off
# ruff: noqa: E501
#                 ours                                 Detectron2             authors' layer                 authors' norm
STEM        = Row("backbone/stem",                     "stem.conv1",          "0.conv1",                     "0.bn1")
CONV        = Row("backbone/res{r}/block{b}/conv{n}",  "res{r}.{b}.conv{n}",  "0.layer{l}.{b}.conv{n}",      "0.layer{l}.{b}.bn{n}")
SHORTCUT    = Row("backbone/res{r}/block{b}/shortcut", "res{r}.{b}.shortcut", "0.layer{l}.{b}.downsample.0", "0.layer{l}.{b}.downsample.1")
LATERAL     = Row("fpn/lateral{r}",                    "fpn_lateral{r}",      "1.lateral_convs.{i}.conv",    "1.lateral_convs.{i}.bn")
OUTPUT      = Row("fpn/output{r}",                     "fpn_output{r}",       "1.fpn_convs.{i}.conv",        "1.fpn_convs.{i}.bn")
HEAD        = Row("head/conv{n}",                      "box_head.conv{n}",    "2.cls_convs.{i}.conv",        "2.cls_convs.{i}.bn")
PROJECTOR_1 = Row("projector/linear1",                 "",                    "2.mlp.0",                     "2.mlp.1")
PROJECTOR_2 = Row("projector/linear2",                 "",                    "2.mlp.3",                     "2.mlp.4")
PREDICTOR_1 = Row("level{s}/linear1",                  "",                    "{s}.mlp.0",                   "{s}.mlp.1")
PREDICTOR_2 = Row("level{s}/linear2",                  "",                    "{s}.mlp.3",                   "")
# fmt: on

# Our leaf -> torch's, of a norm; collection of the state that holds it.
NORM = (("params", "scale", "weight"), ("params", "bias", "bias"))
STATISTICS = (("batch_stats", "mean", "running_mean"), ("batch_stats", "var", "running_var"))

# Where a network lives in the state: (name, parameters, statistics, authors' prefix).
ONLINE = ("params/encoder/", "batch_stats/encoder/", "encoder_q.")
TARGET = ("target_params/", "target_batch_stats/", "encoder_k.")
PREDICTOR = ("params/predictor/", "batch_stats/predictor/", "head.predictor.")


@dataclass(frozen=True)
class Tensor:
    """One array of a checkpoint.

    Attributes:
      source: path in the state.
      shape: in our layout.
      detectron2: name in a Detectron2 model, '' where it has none.
      authors: name in the authors' state_dict.
    """

    source: str
    shape: Shape
    detectron2: str
    authors: str

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
    return _encoder(a, *ONLINE)


def target(a: Architecture) -> list[Tensor]:
    """Tensors of the target encoder; Detectron2 never sees them."""
    return [Tensor(t.source, t.shape, "", t.authors) for t in _encoder(a, *TARGET)]


def predictor(a: Architecture, levels: int) -> list[Tensor]:
    """Tensors of the online predictors of `levels` montage levels."""
    where = PREDICTOR
    tensors = []
    for s in range(levels):
        sizes = (a.projector_out, a.predictor_hidden)
        tensors += _linear(PREDICTOR_1, {"s": s}, sizes, where)
        tensors += _norm(
            "level{s}/norm1", PREDICTOR_1, {"s": s}, sizes[1], where, NORM + STATISTICS
        )
        tensors += _linear(PREDICTOR_2, {"s": s}, sizes[::-1], where)
    return tensors


def _encoder(a: Architecture, *where: str) -> list[Tensor]:
    tensors = []
    for row, at, shape in (*_backbone(a), *_neck_and_head(a)):
        tensors.append(_kernel(row, at, shape, where))
        tensors += _norm(row.ours + "/norm", row, at, shape[-1], where, NORM + STATISTICS)
    sizes = (a.fpn_channels, a.projector_hidden, a.projector_out)
    tensors += _linear(PROJECTOR_1, {}, sizes[:2], where)
    tensors += _norm("projector/norm1", PROJECTOR_1, {}, sizes[1], where, NORM + STATISTICS)
    tensors += _linear(PROJECTOR_2, {}, sizes[1:], where)
    # The last norm has no affine parameters (design section 3).
    return tensors + _norm("projector/norm2", PROJECTOR_2, {}, sizes[2], where, STATISTICS)


def _backbone(a: Architecture) -> Iterator[tuple[Row, dict[str, int], Shape]]:
    """(row, indices, kernel shape HWIO) of every convolution; r: res level, l: torch's layer, b:
    block, n: convolution from 1. Nothing for a Swin, whose rows stand in convert/names/swin.py."""
    if is_swin(a.backbone):
        return
    yield STEM, {}, (7, 7, 3, a.width)
    counts, bottleneck = architecture(a.backbone)
    inputs = a.width
    for i, count in enumerate(counts):
        features = a.width * 2**i
        outputs = 4 * features if bottleneck else features
        for b in range(count):
            at = {"r": i + 2, "l": i + 1, "b": b}
            kernels = [(3, 3, inputs, features), (3, 3, features, outputs)]
            if bottleneck:
                kernels = [(1, 1, inputs, features), (3, 3, features, features)]
                kernels += [(1, 1, features, outputs)]
            for n, shape in enumerate(kernels, start=1):
                yield CONV, at | {"n": n}, shape
            if b == 0 and (i > 0 or inputs != outputs):
                yield SHORTCUT, at, (1, 1, inputs, outputs)
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


def _kernel(row: Row, at: dict[str, int], shape: Shape, where: tuple[str, ...]) -> Tensor:
    return Tensor(
        where[0] + f"{row.ours}/kernel".format(**at),
        shape,
        f"{row.detectron2}.weight".format(**at) if row.detectron2 else "",
        where[2] + f"{row.authors}.weight".format(**at),
    )


def _linear(
    row: Row, at: dict[str, int], shape: Shape, where: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    bias = Tensor(
        where[0] + f"{row.ours}/bias".format(**at),
        shape[1:],
        "",
        where[2] + f"{row.authors}.bias".format(**at),
    )
    return _kernel(row, at, shape, where), bias


def _norm(
    ours: str,
    row: Row,
    at: dict[str, int],
    channels: int,
    where: tuple[str, ...],
    leaves: tuple[tuple[str, str, str], ...],
) -> list[Tensor]:
    roots = {"params": where[0], "batch_stats": where[1]}
    return [
        Tensor(
            roots[collection] + f"{ours}/{leaf}".format(**at),
            (channels,),
            f"{row.detectron2}.norm.{torch_leaf}".format(**at) if row.detectron2 else "",
            where[2] + f"{row.authors_norm}.{torch_leaf}".format(**at),
        )
        for collection, leaf, torch_leaf in leaves
    ]
