"""Export to torchvision and timm: the online backbone as a state_dict (.pth) of their classifiers.

Shapes: kernels leave as OIHW and [out, in], bias tables as they are, vectors [C]; all float32 but
integer buffers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert import architectures, folder, report, strict, swin, table
from convert.authors_files import COUNTER, import_torch
from mcl_jax.models.backbone import Architecture, is_swin, stage_channels
from mcl_jax.models.windows import relative_position_index

ROOTS = ("params/encoder/backbone/", "batch_stats/encoder/backbone/")
CLASSIFIER = "params/classifier/"
# The authors build their backbone as torchvision does, below this name.
AUTHORS_BACKBONE = "encoder_q.0."
COMPUTED = "computed"  # the source of buffers that hold nothing learned
# The widths that the libraries' own constructors build.
STOCK_WIDTH = {True: 96, False: 64}


@dataclass(frozen=True)
class Library:
    """Where names and buffers differ; ResNets are the same in both.

    Attributes:
      name: of the target, and of the library's names in convert/swin.py.
      model: how a user builds a model of a name, for the report.
      models: our name of a backbone -> the library's, where they differ.
      swin_class: what builds a Swin of other sizes.
      swin_classifier: its last linear layer.
      swin_index: whether its state_dict holds the index buffers of Swin.
    """

    name: str
    model: str
    models: Mapping[str, str]
    swin_class: str
    swin_classifier: str
    swin_index: bool


TORCHVISION = Library(
    "torchvision",
    "torchvision.models.{}",
    {},
    "torchvision.models.SwinTransformer",
    "head",
    swin_index=True,
)
TIMM = Library(
    "timm",
    "timm.create_model('{}')",
    {"swin_t": "swin_tiny_patch4_window7_224"},
    "timm.models.SwinTransformer",
    "head.fc",
    swin_index=False,
)


class Tensor(NamedTuple):
    """One array: path in the state, shape in our layout, the library's name ('' if it has none)."""

    source: str
    shape: table.Shape
    name: str


def tensors(a: Architecture, library: Library) -> list[Tensor]:
    """Every array of the online backbone, in the order of torchvision's state_dict."""
    if is_swin(a.backbone):
        return [Tensor(row.source, row.shape, getattr(row, library.name)) for row in swin.rows(a)]
    return [
        Tensor(t.source, t.shape, t.authors.removeprefix(AUTHORS_BACKBONE))
        for t in table.online(a)
        if t.authors.startswith(AUTHORS_BACKBONE)
    ]


def classifier(state: Mapping[str, Any], a: Architecture, library: Library) -> list[Tensor]:
    """The classifier of pooled res5, for as many classes as its bias has."""
    bias = strict.flatten(state["params"]).get("classifier/bias", np.zeros(0))
    name = classifier_name(a, library)
    shape = (stage_channels(a)[-1], bias.size)
    return [
        Tensor(f"{CLASSIFIER}kernel", shape, f"{name}.weight"),
        Tensor(f"{CLASSIFIER}bias", shape[1:], f"{name}.bias"),
    ]


def classifier_name(a: Architecture, library: Library) -> str:
    """The library's name of the last linear layer."""
    return library.swin_classifier if is_swin(a.backbone) else "fc"


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """Our layout -> torch's, as a C-contiguous copy."""
    return array.copy() if name.endswith(swin.BIAS_TABLE) else table.to_torch(array)


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The exact inverse of `to_torch`."""
    return array.copy() if name.endswith(swin.BIAS_TABLE) else table.from_torch(array)


def state_dict(
    state: Mapping[str, Any], config: Mapping[str, Any], library: Library
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(library's name -> array, name -> source), after checking the backbone strictly.

    Args:
      state: nested dicts of arrays with the fields of TrainState.
      config: of the run.

    Raises:
      UserError: names every missing, unexpected, misshapen or non-finite array.
    """
    a = architectures.from_config(config)
    rows, roots = tensors(a, library), ROOTS
    if architectures.classifies_images(config):
        rows, roots = rows + classifier(state, a, library), (*roots, CLASSIFIER)
    arrays = report.networks(state)
    strict.demand(
        strict.problems(
            {source: x for source, x in arrays.items() if source.startswith(roots)},
            {t.source: t.shape for t in rows},
        ),
        f"the checkpoint does not hold the {a.backbone} that its configuration names",
    )
    found, sources = {}, {}
    for t in rows:
        if not t.name:
            continue
        found[t.name], sources[t.name] = to_torch(t.name, arrays[t.source]), t.source
        for name, buffer in _buffer(t, library).items():
            found[name], sources[name] = buffer, COMPUTED
    return found, sources


def _buffer(t: Tensor, library: Library) -> dict[str, np.ndarray]:
    """The integer buffer that the library keeps right behind an array, if it does."""
    if t.name.endswith(swin.BIAS_TABLE) and library.swin_index:
        window = (round(t.shape[0] ** 0.5) + 1) // 2
        name = t.name.removesuffix(swin.BIAS_TABLE) + swin.INDEX
        return {name: relative_position_index(window).reshape(-1)}
    if t.name.endswith(".running_var"):
        return {t.name.removesuffix(".running_var") + COUNTER: np.asarray(0, np.int64)}
    return {}


def write(path: Path, model: Mapping[str, np.ndarray]) -> str:
    """Writes a .pth, reads it back as users do, compares bit by bit; returns its sha256."""
    torch = import_torch()
    torch.save({name: torch.from_numpy(x) for name, x in model.items()}, path)
    read = {k: x.numpy() for k, x in torch.load(path, weights_only=True).items()}
    folder.demand_equal(read, model, path.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    out: Path,
    library: Library,
) -> list[Path]:
    """Writes mcl_NAME.pth, report.json and report.txt into `out`, see `folder.write`.

    Args:
      state, meta: what `mcl_jax.checkpoint.read` returns.
      source: what the user called the checkpoint, for the report.
      out: folder.
      library: TORCHVISION or TIMM.

    Returns:
      The written files.

    Raises:
      UserError: without torch, and as `state_dict`.
    """
    import_torch()
    a = architectures.from_config(meta["config"])
    model, sources = state_dict(state, meta["config"], library)
    weights = f"mcl_{a.backbone}.pth"

    def fill(temporary: Path) -> None:
        digest = write(temporary / weights, model)
        content = _report(state, meta, source, model, sources, library)
        report.write(temporary, content | {"file": weights, "sha256": digest})

    return folder.write(out, fill)


def _report(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    model: Mapping[str, np.ndarray],
    sources: Mapping[str, str],
    library: Library,
) -> dict[str, Any]:
    a = architectures.from_config(meta["config"])
    last = classifier_name(a, library)
    has_classifier = f"{last}.weight" in model
    scratch = "nothing" if has_classifier else f"{last} (load with strict=False)"
    outside = {part: f"{part}: a classifier has none" for part in ("fpn", "head")}
    outside["backbone"] = "output norms of res2..res4: a classifier has that of the last stage only"
    name = library.model.format(library.models.get(a.backbone, a.backbone))
    return report.describe(
        library.name,
        state,
        meta,
        source,
        model,
        sources,
        notes=limits(a, library, model[f"{last}.bias"].size if has_classifier else None),
        models={name: {"loads": "all", "from_scratch": scratch}},
        reasons=outside,
    )


def limits(a: Architecture, library: Library, classes: int | None) -> list[str]:
    """What the library's constructor has to be told, or cannot do, in words."""
    notes = []
    stock = STOCK_WIDTH[is_swin(a.backbone)]
    if a.width != stock and is_swin(a.backbone):
        notes.append(
            f"{a.backbone} has embedding dimension {stock} in {library.name}, this one {a.width}: "
            f"build {library.swin_class} with it and its heads"
        )
    elif a.width != stock:
        notes.append(
            f"{library.name} builds {a.backbone} with width {stock} only, this one has {a.width}: "
            f"pre-train with model.width {stock}"
        )
    if classes is not None:
        notes.append(f"the classifier has {classes} classes: build it with num_classes={classes}")
    return notes
