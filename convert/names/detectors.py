"""Detectors: backbone, FPN and box head under the names of Detectron2, MMDetection and torchvision.

Shapes: as in convert/names/table.py.
"""

from collections.abc import Iterator, Sequence

from mcl_jax.convert.names import swin, table
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.classifiers import with_counter
from mcl_jax.convert.names.layouts import Entry, FileLayout, roots
from mcl_jax.models.backbone import Architecture, is_swin

LIBRARIES = ("detectron2", "mmdet", "torchvision")  # columns of convert/names/table.py


def layout(
    a: Architecture, library: str, parts: Sequence[str] = PARTS, *, folded: bool = False
) -> FileLayout:
    """These parts of the online encoder.

    Args:
      a: the networks; Swin for 'mmdet' alone.
      library: one of LIBRARIES.
      parts: some of architectures.PARTS.
      folded: FPN and head have no norms, and biases instead: see transform.fold.
    """
    entries = []
    if is_swin(a.backbone) and "backbone" in parts:
        entries = [_of_swin(row) for row in swin.rows(a)]
    for tensor in table.online(a):
        part = tensor.source.split("/")[2]
        if part in parts:
            entry = _entry(tensor, library)
            entries += _biased(entry) if folded and part != "backbone" else [entry]
    return FileLayout(tuple(entries), roots(*parts))


def _entry(tensor: table.Tensor, library: str) -> Entry:
    """An array under a library's name; Detectron2 counts no batches."""
    name = getattr(tensor, library)
    if library == "detectron2":
        return Entry(tensor.source, tensor.shape, name)
    return with_counter(tensor, name)


def _biased(entry: Entry) -> Iterator[Entry]:
    """What stands for an array where the norms are folded: a kernel with a bias, no norm."""
    if entry.source.endswith("/kernel"):
        yield entry
        source = entry.source.removesuffix("kernel") + "bias"
        yield Entry(source, entry.shape[-1:], entry.name.removesuffix("weight") + "bias")


def _of_swin(row: swin.Row) -> Entry:
    name = f"backbone.{row.mmdet}"
    if name.endswith(swin.BIAS_TABLE):
        index = name.removesuffix(swin.BIAS_TABLE) + swin.INDEX
        return Entry(
            row.source,
            row.shape,
            name=name,
            layout="same",
            buffers={index: swin.position_index(row)},
        )
    return Entry(row.source, row.shape, name=name, layout="unfold" if row.merges else "torch")
