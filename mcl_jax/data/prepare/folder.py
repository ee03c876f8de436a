"""A folder of images -> a TFDS data set in ArrayRecord form (few large files instead of many)."""

import functools
import re

import tensorflow_datasets as tfds

from mcl_jax import paths
from mcl_jax.data import left_out
from mcl_jax.data.decode import DecodeError, decode_to_canvas
from mcl_jax.data.folder import FolderSource, open_folder
from mcl_jax.data.left_out import Tally
from mcl_jax.data.prepare.jobs import Examples, JobBuilder, SplitJob, hash_of, usage, write_splits
from mcl_jax.errors import UserError


class ImageFolder(JobBuilder, skip_registration=True):
    """The images of a folder, labeled by sub-folder where sub-folders name classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, name: str, class_names: tuple | None, jobs: list[SplitJob], data_dir: str
    ):
        """name: of the data set; class_names: None without labels; jobs: the splits."""
        self.name = name
        self._class_names = class_names
        super().__init__(jobs=jobs, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "file_name": tfds.features.Text()}
        if self._class_names is not None:
            features["label"] = tfds.features.ClassLabel(names=list(self._class_names))
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )


def prepare_folder(*, folder: str, name: str, data_dir: str, holdout_percent: int) -> str:
    """Write the images below `folder` as `tfds:NAME`; files that cannot be decoded are left out.

    Args:
      folder: tree of images; order, labels and hold-out as in `mcl_jax.data.folder.open_folder`.
      name: of the data set: lower-case letters, digits, '_'.
      data_dir: TFDS directory to write to.
      holdout_percent: 0..99; this share becomes the split 'validation'.

    Returns:
      The flags to use the data set with.

    Raises:
      UserError: a bad name or percentage, or a folder without images.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name {name!r} should be lower-case letters, digits and '_', e.g. my_images"
        )
    if not 0 <= holdout_percent <= 99:
        raise UserError(f"--holdout_percent {holdout_percent} is not in 0..99")
    data_dir = paths.output_folder(data_dir, "--data_dir")
    slices = {"train": "train"}
    if holdout_percent:
        border = 100 - holdout_percent
        slices = {"train": f"train[:{border}%]", "validation": f"train[{border}%:]"}
    sources = {split: open_folder(folder, part) for split, part in slices.items()}
    jobs = [
        SplitJob(
            split, functools.partial(_examples, source), input_bytes=_size(source), expected=None
        )
        for split, source in sources.items()
    ]
    class_names = sources["train"].class_names
    builder = ImageFolder(name=name, class_names=class_names, jobs=jobs, data_dir=data_dir)
    counts = write_splits(builder, partial=False)
    return usage(name, data_dir, sorted(counts))


def _size(source: FolderSource) -> int:
    return sum(map(source.size_of, source.files))


def _examples(source: FolderSource) -> Examples:
    others = Tally()
    # In hashed order, so that slices of a small data set are random subsets too.
    for index in sorted(range(len(source)), key=lambda i: hash_of(source.files[i])):
        try:
            record = source[index]
            decode_to_canvas(record.data, 1)
        except (DecodeError, OSError) as error:
            kind = "damaged image" if isinstance(error, DecodeError) else "file that cannot be read"
            others.add(kind, f"{source.files[index]}: {error}")
            continue
        example = {"image": record.data, "file_name": record.name}
        if source.class_names is not None:
            example["label"] = record.label
        yield source.files[index], example
    left_out.tell(source.root, others.kinds)
