"""What every data source hands out: one encoded image with its label and name."""

from typing import NamedTuple, Protocol


class Record(NamedTuple):
    """One encoded image.

    Attributes:
      data: the encoded bytes as stored.
      label: class index, -1 if the data set has none.
      name: what a log line can call it: a path, a file name, or split[index].
    """

    data: bytes
    label: int
    name: str


class Source(Protocol):
    """Random access to encoded images; picklable, since data workers are spawned.

    A source may have more: `labels`, one per image, where they are known without reading it, and
    `digest`, a text that changes with the list of its files.
    """

    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def data_digest(source: Source) -> str:
    """A text that changes with the list of a source's files; '' where the source has none."""
    return getattr(source, "digest", "")
