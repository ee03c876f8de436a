"""Data sets by name: `scenes`, `folder:/path`, `tfds:NAME[/CONFIG][:VERSION]`.

TFDS data sets are read from their directory in ArrayRecord form with tensorflow-datasets, which
then never imports TensorFlow; the code that once built them is not needed.
"""

import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from mcl_jax import paths
from mcl_jax.data.folder import open_folder
from mcl_jax.data.record import Record, Source
from mcl_jax.data.scenes.builder import prepare_scenes
from mcl_jax.errors import EmptySplit, UserError

__all__ = ["Record", "Source", "TfdsSource", "open_source", "find_dataset_dir"]

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w\-.]+))?(?::(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
# What prepares the data sets that cannot be had in ArrayRecord form elsewhere.
_PREPARE = {"imagenet2012": "imagenet", "coco": "coco"}


def open_source(dataset: str, split: str, data_dir: str | None) -> Source:
    """Open a data set for random access.

    Args:
      dataset: 'scenes' (the built-in default, prepares itself), 'folder:/path', or
        'tfds:NAME[/CONFIG][:VERSION]' (newest version unless one is given).
      split: TFDS syntax: 'train', 'train+unlabeled', 'train[:10%]'; a folder knows 'train' and its
        slices (see `mcl_jax.data.folder.open_folder`).
      data_dir: where TFDS data sets lie. None: for scenes $MCL_JAX_DATA or ~/.cache/mcl_jax, for
        others $TFDS_DATA_DIR or ~/tensorflow_datasets. Not used by folders.

    Returns:
      A `Source`: `len`, `[i] -> Record(data, label, name)`, `class_names`; picklable.

    Raises:
      UserError: unknown kind of data set, directory, version or split, a data set in TFRecord form,
        or an empty folder; the message says what to do.

    Example:
      open_source("folder:/data/photos", "train[:90%]", None)[0].name  # 'cat/1.jpg'
    """
    if dataset == "scenes":
        return TfdsSource(str(prepare_scenes(data_dir)), split)
    kind, _, rest = dataset.partition(":")
    if kind == "folder" and rest:
        return open_folder(rest, split)
    if kind == "tfds" and rest:
        return TfdsSource(tfds_directory(rest, data_dir), split)
    raise UserError(
        f"unknown data set {dataset!r}; use 'scenes', 'folder:/path/to/images' or "
        "'tfds:NAME[/CONFIG][:VERSION]'"
    )


def tfds_directory(name: str, data_dir: str | None) -> str:
    """`find_dataset_dir` below `data_dir`; None: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return find_dataset_dir(name, paths.expanded(data_dir, "data_dir"))


def find_dataset_dir(name: str, data_dir: str) -> str:
    """Directory of NAME[/CONFIG][:VERSION] below `data_dir`, the newest finished version.

    Raises:
      UserError: a malformed name, or nothing finished there; names what is there instead.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"data set name {name!r} is not NAME[/CONFIG][:VERSION], e.g. coco/2017:1.1.0"
        )
    data_dir = paths.existing_folder(data_dir, "data_dir", _how_to_prepare(match["name"]))
    root = epath.Path(data_dir)
    if not root.is_dir():  # in a bucket
        raise UserError(f"data_dir {data_dir!r} does not exist; {_how_to_prepare(match['name'])}")
    parent = root / match["name"]
    if match["config"]:
        parent = parent / match["config"]
    versions = _finished_versions(parent)
    if match["version"]:
        if match["version"] in versions:
            return os.fspath(parent / match["version"])
        raise UserError(f"version {match['version']} of {name!r} is not in {parent}: {versions}")
    if not versions:
        raise UserError(_nothing_there(match["name"], root, parent))
    return os.fspath(parent / versions[-1])


def _finished_versions(parent: epath.Path) -> list[str]:
    """Version directories with metadata, oldest first; half-written ones have none."""
    if not parent.is_dir():
        return []
    versions = [
        path.name
        for path in parent.iterdir()
        if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").exists()
    ]
    return sorted(versions, key=lambda v: tuple(map(int, v.split("."))))


def _nothing_there(name: str, root: epath.Path, parent: epath.Path) -> str:
    if parent.is_dir():
        configs = sorted(p.name for p in parent.iterdir() if _finished_versions(p))
        if configs:
            return f"{parent} holds configs, not versions: name one, e.g. tfds:{name}/{configs[0]}"
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    listing = ", ".join(names[:10]) if names else "nothing"
    return f"no finished data set in {parent} (data_dir holds: {listing}); {_how_to_prepare(name)}"


def _how_to_prepare(name: str) -> str:
    if name in _PREPARE:
        return f"prepare it with `mcl-jax prepare {_PREPARE[name]} --help`"
    return (
        "prepare it with `mcl-jax prepare folder --help`, or have TFDS write it "
        "with file_format='array_record', and pass the directory as data_dir"
    )


class TfdsSource:
    """Images of one split of a prepared TFDS directory, still encoded.

    The image feature is the only one of type Image (or the one called 'image'), the label the only
    ClassLabel at the top level (or the one called 'label').

    Attributes:
      class_names: of the label; None without one.
      features: of the data set, as TFDS describes them.
    """

    def __init__(self, directory: str, split: str):
        """Open `split` of the ArrayRecord data set in `directory`; UserError as `open_source`
        says."""
        self._directory = directory
        self._split = split
        self._open()

    def _open(self) -> None:
        builder = self._builder()
        self._check_format(builder)
        features = self.features = builder.info.features
        self._image_key = _only_feature(features, tfds.features.Image, "image")
        if self._image_key is None:
            raise UserError(f"{self._directory} has no image feature: {sorted(features)}")
        self._label_key = _only_feature(features, tfds.features.ClassLabel, "label")
        self._name_key = next((k for k in ("image/filename", "file_name") if k in features), None)
        self.class_names = tuple(features[self._label_key].names) if self._label_key else None
        try:
            self._instructions = builder.info.splits[self._split].file_instructions
            empty = builder.info.splits[self._split].num_examples == 0
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"split {self._split!r} cannot be read from {self._directory}, which has "
                f"{self._splits(builder)}: {str(error).splitlines()[0]}"
            ) from error
        if empty:
            raise EmptySplit(f"split {self._split!r} of {self._directory} is empty")
        self._data = self._open_files(builder)

    def _open_files(self, builder: tfds.core.DatasetBuilder) -> Sequence:
        missing = [x.filename for x in self._instructions if not os.path.exists(x.filename)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self._instructions)} files of split {self._split!r} are "
                f"missing, e.g. {missing[0]}; copy or prepare the data set again"
            )
        decoders = {self._image_key: tfds.decode.SkipDecoding()}
        return builder.as_data_source(split=self._split, decoders=decoders)

    def _builder(self) -> tfds.core.DatasetBuilder:
        try:
            return tfds.builder_from_directory(self._directory)
        except Exception as error:  # TFDS and protobuf raise anything on damaged metadata
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self._directory} cannot be opened as a data set ({reason}): its "
                "dataset_info.json or features.json is damaged; copy or prepare it again"
            ) from error

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the split's files by name, part and size; a copy elsewhere has the same."""
        parts = [
            (os.path.basename(x.filename), x.skip, x.take, os.path.getsize(x.filename))
            for x in self._instructions
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _check_format(self, builder: tfds.core.DatasetBuilder) -> None:
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{self._directory} is in {builder.info.file_format.value} form, which needs "
                "TensorFlow; rewrite it once with `mcl-jax prepare tfrecord "
                f"--input {self._directory} --data_dir NEW_DIR`"
            )

    @staticmethod
    def _splits(builder: tfds.core.DatasetBuilder) -> str:
        return ", ".join(f"{k} ({v.num_examples})" for k, v in sorted(builder.info.splits.items()))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        return self.record(self.example(index), index)

    def example(self, index: int) -> dict[str, Any]:
        """All features of an example, the image encoded.

        Raises:
          OSError: the record is damaged, or its file is gone.
          IndexError: there are fewer.
        """
        if index >= len(self):
            raise IndexError(f"{self._directory} has no record {index}")
        try:
            example = self._data[index]
            if example[self._image_key] is None:
                raise ValueError("it is empty")
            return example
        except Exception as error:  # of ArrayRecord's reader: as a file that cannot be read
            raise OSError(f"record {index} of {self._directory} cannot be read: {error}") from error

    def record(self, example: dict[str, Any], index: int) -> Record:
        """What `[index]` gives, of an example that is already read."""
        label = -1 if self._label_key is None else int(example[self._label_key])
        if self._name_key is None:
            name = f"{self._split}[{index}]"
        else:
            name = example[self._name_key]
            name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return Record(bytes(example[self._image_key]), label, name)

    def examples(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """Whole examples with all their features, the image still encoded."""
        return self._data.__getitems__(list(indices))

    def __getstate__(self) -> dict:
        # File readers do not travel to a worker: it opens its own.
        return {"directory": self._directory, "split": self._split}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def _only_feature(features: tfds.features.FeaturesDict, kind: type, preferred: str) -> str | None:
    """Key of the feature of `kind`; with several, the preferred name, else None."""
    keys = [key for key in features if isinstance(features[key], kind)]
    if preferred in keys:
        return preferred
    return keys[0] if len(keys) == 1 else None
