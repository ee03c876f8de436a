"""torchvision's and timm's classifiers: their names of the backbone and of the last layer.

Shapes: kernels are OIHW and [out, in] there, bias tables as they are, vectors [C].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mcl_jax.convert.names import swin, table
from mcl_jax.convert.names.layouts import Entry, FileLayout, roots
from mcl_jax.models.backbone import Architecture, is_swin, stage_channels

CLASSIFIER = "params/classifier/"
RUNNING_VAR, COUNTER = ".running_var", ".num_batches_tracked"
# The widths that the libraries' own constructors build.
STOCK_WIDTH = {True: 96, False: 64}


@dataclass(frozen=True)
class Library:
    """Where names and buffers differ; ResNets are the same in both.

    Attributes:
      name: of the target, and of the library's names in convert/names/swin.py.
      model: how a user builds a model of a name.
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

    def builds(self, backbone: str) -> str:
        """What builds a network, in Python."""
        return self.model.format(self.models.get(backbone, backbone))


TORCHVISION = Library(
    "torchvision",
    "torchvision.models.{}()",
    models={},
    swin_class="torchvision.models.SwinTransformer",
    swin_classifier="head",
    swin_index=True,
)
TIMM = Library(
    "timm",
    "timm.create_model('{}')",
    models={"swin_t": "swin_tiny_patch4_window7_224"},
    swin_class="timm.models.SwinTransformer",
    swin_classifier="head.fc",
    swin_index=False,
)


def layout(a: Architecture, library: Library, classes: int | None) -> FileLayout:
    """The online backbone, in the order of torchvision's state_dict.

    Args:
      a: the networks.
      library: TORCHVISION or TIMM.
      classes: of the run's classifier of pooled res5, which then comes along; None: there is none.
    """
    entries = []
    if is_swin(a.backbone):
        entries = [swin_entry(row, getattr(row, library.name), library) for row in swin.rows(a)]
    entries += [with_counter(t, t.classifier) for t in table.online(a) if t.classifier]
    if classes is None:
        return FileLayout(tuple(entries), roots("backbone"))
    name, channels = classifier_name(a, library), stage_channels(a)[-1]
    entries += [
        Entry(f"{CLASSIFIER}kernel", (channels, classes), f"{name}.weight"),
        Entry(f"{CLASSIFIER}bias", (classes,), f"{name}.bias"),
    ]
    return FileLayout(tuple(entries), (*roots("backbone"), CLASSIFIER))


def swin_entry(row: swin.Row, name: str, library: Library) -> Entry:
    """A row of Swin's table under a library's name."""
    if not name.endswith(swin.BIAS_TABLE):
        return Entry(row.source, row.shape, name)
    index = name.removesuffix(swin.BIAS_TABLE) + swin.INDEX
    buffers = {index: swin.position_index(row).reshape(-1)} if library.swin_index else {}
    return Entry(row.source, row.shape, name=name, layout="same", buffers=buffers)


def with_counter(tensor: table.Tensor, name: str) -> Entry:
    """An array of a ResNet; torch counts the batches behind every running variance."""
    counter = name.removesuffix(RUNNING_VAR) + COUNTER
    buffers = {counter: np.asarray(0, np.int64)} if name.endswith(RUNNING_VAR) else {}
    return Entry(tensor.source, tensor.shape, name, buffers=buffers)


def classifier_name(a: Architecture, library: Library) -> str:
    """The library's name of the last linear layer."""
    return library.swin_classifier if is_swin(a.backbone) else "fc"


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
