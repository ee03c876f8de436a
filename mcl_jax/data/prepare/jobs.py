"""Writing data sets in ArrayRecord form without TensorFlow, split by split.

The builders beside this file are TFDS GeneratorBasedBuilders, but their examples are written here:
TFDS's own writer sorts anything above 1 GB through temporary files that need TensorFlow. Records go
straight to their shard by a hash of their key, so a slice of a split is a random subset, memory and
disk hold nothing twice, and a split is finished only when the metadata names it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from mcl_jax import paths
from mcl_jax.data import text
from mcl_jax.errors import UserError
from mcl_jax.report.progress import Bar

Examples = Iterator[tuple[str, dict]]

# ArrayRecord's random access reads whole groups: one record per group, as TFDS writes it.
WRITER_OPTIONS = "group_size:1"
# All shards of a split are open at once, at 3 MB of memory each: 270 for ImageNet.
_SHARD_BYTES = 512 * 2**20
_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class SplitJob:
    """One split to write.

    Attributes:
      name: of the split.
      examples: starts the pass over (unique key, example).
      input_bytes: size of the input, which decides the number of shards.
      expected: number of images the published data set has, None if there is no such number.
    """

    name: str
    examples: Callable[[], Examples]
    input_bytes: int
    expected: int | None


class JobBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose splits are jobs over local files; subclasses give `_info`."""

    def __init__(self, *, jobs: list[SplitJob], data_dir: str, config: str | None = None):
        """jobs: the splits to write; config: name of the builder config, if there are any."""
        self.jobs = jobs
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # The files are given, nothing is downloaded.
        return {job.name: self._generate_examples(job) for job in self.jobs}

    def _generate_examples(self, job: SplitJob) -> Examples:
        return job.examples()


def write_splits(builder: JobBuilder, *, partial: bool) -> dict[str, int]:
    """Write the splits that are not there yet; each is published whole or not at all.

    Args:
      builder: gives name, version, features, the directory and the splits wanted; splits of
        earlier runs stay.
      partial: accept counts other than the published ones.

    Returns:
      Number of images of every split in the directory, also those of earlier runs.

    Raises:
      UserError: a count that is not the published one, a split without images, or classes other
        than those of the splits already there.
    """
    final = os.fspath(builder.data_path)
    with _nothing_half_written(final):
        _save_features(builder, final)
        for job in builder.jobs:
            counts = split_counts(final)
            if job.name in counts:
                _check_count(job, counts[job.name], partial=partial)
                print(f"{job.name}: {counts[job.name]} images, already prepared: skipped")
                continue
            count = _write_split(builder, job, final=final, partial=partial)
            print(f"{job.name}: {count} images written to {paths.shown(final)}")
    return split_counts(final)


@contextlib.contextmanager
def _nothing_half_written(final: str) -> Iterator[None]:
    """Makes the folder; if what happens inside fails before a split is finished, it goes again."""
    folders = []
    folder = os.path.abspath(final)
    while not os.path.exists(folder):
        folders.append(folder)
        folder = os.path.dirname(folder)
    os.makedirs(final, exist_ok=True)
    try:
        yield
    except BaseException:
        if folders and not split_counts(final):
            shutil.rmtree(final, ignore_errors=True)
            for folder in folders[1:]:
                with contextlib.suppress(OSError):  # another one writes there too
                    os.rmdir(folder)
        raise


def split_counts(directory: str) -> dict[str, int]:
    """Images per finished split of a data set directory; {} if nothing is finished."""
    return {s["name"]: sum(map(int, s["shardLengths"])) for s in _read_info(directory)["splits"]}


def usage(dataset: str, data_dir: str, splits: list[str]) -> str:
    """The configuration flags that read the prepared data set."""
    return (
        f"use it with: --config.data.dataset=tfds:{dataset} "
        f"--config.data.data_dir={os.path.abspath(data_dir)}\n"
        f"splits: {', '.join(splits)}"
    )


def _read_info(directory: str) -> dict:
    path = os.path.join(directory, _INFO)
    if not os.path.exists(path):
        return {"splits": []}
    info = text.read_json(path, "metadata", "delete the directory to prepare all splits anew")
    try:
        for split in info["splits"]:
            str(split["name"]), sum(map(int, split["shardLengths"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{paths.shown(path)!r} is no metadata of a data set; delete the directory to prepare "
            "all splits anew"
        ) from None
    return info


def _save_features(builder: JobBuilder, final: str) -> None:
    """Write the feature files; refuse to change those that finished splits were written with."""
    staging = os.path.join(final, ".features.writing")
    shutil.rmtree(staging, ignore_errors=True)
    os.makedirs(staging)
    builder.info.features.save_config(staging)
    counts = split_counts(final)
    for name in sorted(os.listdir(staging)):
        new, old = os.path.join(staging, name), os.path.join(final, name)
        if counts and not _same_text(new, old):
            shutil.rmtree(staging)
            raise UserError(
                f"{final} holds {', '.join(counts)} with other features or classes ({name}); "
                "use another data_dir, or delete the directory to prepare all splits anew"
            )
        os.replace(new, old)
    os.rmdir(staging)


def _same_text(left: str, right: str) -> bool:
    if not os.path.exists(right):
        return False
    with open(left, encoding="utf-8") as one, open(right, encoding="utf-8") as other:
        return one.read() == other.read()


def _write_split(builder: JobBuilder, job: SplitJob, final: str, *, partial: bool) -> int:
    """Write the shards aside, check the count, move them in, then name the split in the
    metadata."""
    staging = os.path.join(final, f".{job.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)  # Left by an interrupted run.
    os.makedirs(staging)
    try:
        shards = max(1, round(job.input_bytes / _SHARD_BYTES))
        names = shard_names(builder.name, job.name, shards)
        paths = [os.path.join(staging, name) for name in names]
        lengths, size = _write_records(builder.info.features, job, paths=paths, partial=partial)
        _check_count(job, sum(lengths), partial=partial)
        for name in names:
            os.replace(os.path.join(staging, name), os.path.join(final, name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": job.name,
        "numBytes": str(size),
        "shardLengths": [str(length) for length in lengths],
    }
    _publish(builder, final, split)
    return sum(lengths)


def shard_names(dataset: str, split: str, shards: int) -> list[str]:
    """TFDS's file names of the shards of a split."""
    return [f"{dataset}-{split}.array_record-{i:05d}-of-{shards:05d}" for i in range(shards)]


def _write_records(
    features: tfds.features.FeaturesDict, job: SplitJob, paths: list[str], *, partial: bool
) -> tuple[list[int], int]:
    """(records per shard, bytes in all)."""
    writers = [array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS) for path in paths]
    lengths, size = [0] * len(paths), 0
    total = None if partial else job.expected
    try:
        for key, example in Bar(job.examples(), desc=job.name, total=total, unit=" images"):
            data = features.serialize_example(example)
            shard = hash_of(key) % len(paths)
            writers[shard].write(data)
            lengths[shard] += 1
            size += len(data)
    finally:
        for writer in writers:
            writer.close()
    return lengths, size


def hash_of(key: str) -> int:
    """A number of 64 bits that is the same on every machine."""
    data = key.encode("utf-8", "surrogateescape")  # a file's name may be any bytes
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _check_count(job: SplitJob, count: int, *, partial: bool) -> None:
    if count == 0:
        raise UserError(f"split {job.name}: the input holds no image")
    if not partial and job.expected is not None and count != job.expected:
        raise UserError(
            f"split {job.name} has {count} images where the published data set has {job.expected}: "
            "the input is incomplete; --partial prepares it all the same"
        )


def _publish(builder: JobBuilder, final: str, split: dict) -> None:
    """Name the split in dataset_info.json by an atomic replacement."""
    splits = [s for s in _read_info(final)["splits"] if s["name"] != split["name"]]
    info = {
        "description": builder.info.description,
        "fileFormat": "array_record",
        "name": builder.name,
        "splits": sorted([*splits, split], key=lambda s: s["name"]),
        "version": str(builder.version),
    }
    if builder.builder_config is not None:
        info["configName"] = builder.builder_config.name
    path = os.path.join(final, _INFO)
    with open(path + ".writing", "w", encoding="utf-8") as file:
        json.dump(info, file, indent=2)
    os.replace(path + ".writing", path)
