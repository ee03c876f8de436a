"""What every data source hands out: one encoded image with its label and name."""

from typing import NamedTuple, Protocol

_LOOKED_AT = 16  # records until one can be read


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

    A source may have more: `labels`, one per image, where they are known without reading it;
    `unlabeled`, why there are none; and `digest`, a text that changes with the list of its files.
    """

    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def data_digest(source: Source) -> str:
    """A text that changes with the list of a source's files; '' where the source has none."""
    return getattr(source, "digest", "")


def why_unlabeled(source: Source) -> str:
    """Why a source's images have no labels, in words for the user; '' if they have."""
    if getattr(source, "class_names", ()) is None:
        return getattr(source, "unlabeled", "") or "this data set has no labels"
    for index in range(_LOOKED_AT):
        try:
            return "this split has no labels" if source[index].label < 0 else ""
        except OSError:  # one that cannot be read says nothing
            continue
        except IndexError:
            break
    return ""
