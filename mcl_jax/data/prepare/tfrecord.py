"""A TFDS data set in TFRecord form -> the same in ArrayRecord form, without TensorFlow.

Both forms hold the same serialized examples; only the frames around them differ.
"""

import json
import os
import shutil
import struct
from collections.abc import Iterator

from array_record.python import array_record_module

from mcl_jax import paths
from mcl_jax.data import text
from mcl_jax.data.prepare.jobs import WRITER_OPTIONS, split_counts, usage
from mcl_jax.errors import UserError
from mcl_jax.report.progress import Bar

_INFO = "dataset_info.json"
_VERSION_DIRECTORY = "give the version directory, e.g. imagenet2012/5.1.0"


def prepare_tfrecord(*, input_dir: str, data_dir: str) -> str:
    """Rewrite a prepared TFDS version directory; shards already rewritten are kept on a second run.

    Args:
      input_dir: NAME/[CONFIG/]VERSION directory with dataset_info.json and .tfrecord files.
      data_dir: TFDS directory to write to, other than the one that holds `input_dir`.

    Returns:
      The flags to use the data set with.

    Raises:
      UserError: no such data set, not in TFRecord form, a damaged or missing shard, a wrong count.
    """
    input_dir = paths.existing_folder(input_dir, "--input", _VERSION_DIRECTORY)
    data_dir = paths.output_folder(data_dir, "--data_dir")
    info = _read_info(input_dir)
    parts = [info["name"], info.get("configName", ""), info["version"]]
    final = os.path.join(data_dir, *filter(None, parts))
    dataset = "/".join(filter(None, parts[:2]))
    if os.path.exists(os.path.join(final, _INFO)):
        print(f"{final} is already prepared: skipped")
        return usage(dataset, data_dir, sorted(split_counts(final)))
    if os.path.realpath(final) == os.path.realpath(input_dir):
        raise UserError(f"--data_dir {data_dir!r} holds the input itself; give another directory")
    os.makedirs(final, exist_ok=True)
    for split in info["splits"]:
        _rewrite_split(input_dir, final, dataset=info["name"], split=split)
    for name in os.listdir(input_dir):
        if name == "features.json" or name.endswith(".labels.txt"):
            shutil.copy(os.path.join(input_dir, name), final)
    info["fileFormat"] = "array_record"
    with open(os.path.join(final, _INFO + ".writing"), "w", encoding="utf-8") as file:
        json.dump(info, file, indent=2)
    os.replace(os.path.join(final, _INFO + ".writing"), os.path.join(final, _INFO))
    return usage(dataset, data_dir, sorted(split_counts(final)))


def _read_info(input_dir: str) -> dict:
    path = os.path.join(input_dir, _INFO)
    if not os.path.exists(path):
        raise UserError(f"{input_dir!r} has no {_INFO}; {_VERSION_DIRECTORY}")
    info = text.read_json(path, "metadata", _VERSION_DIRECTORY)
    try:
        str(info["name"]), str(info["version"])
        for split in info["splits"]:
            str(split["name"]), sum(map(int, split["shardLengths"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path!r} is no metadata of a data set; {_VERSION_DIRECTORY}") from None
    # Metadata written before TFDS had several forms has no entry.
    form = info.get("fileFormat", "tfrecord")
    if form != "tfrecord":
        raise UserError(f"{input_dir!r} is in {form} form already, not in tfrecord")
    return info


def _rewrite_split(input_dir: str, final: str, dataset: str, split: dict) -> None:
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    with Bar(total=sum(lengths), desc=split["name"], unit=" images") as progress:
        for shard, length in enumerate(lengths):
            name = (
                template.replace("{DATASET}", dataset)
                .replace("{SPLIT}", split["name"])
                .replace("{SHARD_X_OF_Y}", f"{shard:05d}-of-{len(lengths):05d}")
            )
            source = os.path.join(input_dir, name.replace("{FILEFORMAT}", "tfrecord"))
            target = os.path.join(final, name.replace("{FILEFORMAT}", "array_record"))
            if not os.path.exists(target):
                _rewrite_shard(source, target, length)
            progress.update(length)
    print(f"{split['name']}: {sum(lengths)} images in {len(lengths)} shards, counts verified")


def _rewrite_shard(source: str, target: str, expected: int) -> None:
    """Write `target` whole or not at all."""
    if not os.path.exists(source):
        raise UserError(f"shard {source!r} is missing")
    writer = array_record_module.ArrayRecordWriter(target + ".writing", WRITER_OPTIONS)
    count = 0
    try:
        try:
            for record in read_tfrecord(source):
                writer.write(record)
                count += 1
        finally:
            writer.close()
        if count != expected:
            raise UserError(f"shard {source!r} has {count} records, its metadata says {expected}")
    except BaseException:
        os.remove(target + ".writing")
        raise
    os.replace(target + ".writing", target)


def read_tfrecord(path: str) -> Iterator[bytes]:
    """Records of a TFRecord file: length (8 bytes), its checksum (4), data, checksum (4).

    Lengths are verified by their checksum, so that frames cannot slip; data checksums are not.

    Raises:
      UserError: a frame that is cut short or does not fit its checksum.
    """
    with open(path, "rb") as file:
        while header := file.read(12):
            if len(header) < 12 or _masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise UserError(f"{path!r} is damaged, or not a TFRecord file")
            (length,) = struct.unpack("<Q", header[:8])
            body = file.read(length + 4)
            if len(body) < length + 4:
                raise UserError(f"{path!r} ends in the middle of a record")
            yield body[:length]


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of every byte, reflected polynomial 0x82F63B78."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C turned by 15 bits plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
