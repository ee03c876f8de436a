"""Preparing COCO from tiny zips in its own shape, folders and TFRecords, and the script."""

import json
import logging
import os
import resource
import struct
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from mcl_jax import whole_file
from mcl_jax.data.prepare import coco as prepare_coco
from mcl_jax.data.prepare import tfrecord as prepare_tfrecord
from mcl_jax.data.prepare.folder import prepare_folder
from mcl_jax.data.sources import open_source
from mcl_jax.errors import CannotSave, UserError


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


@pytest.fixture
def coco(tmp_path):
    """Keyword arguments of a tiny COCO: 3 train, 2 val, 4 unlabeled images, categories 1 and 18."""
    sizes = {"train": range(3), "val": range(10, 12), "unlabeled": range(20, 24)}
    zips, annotations = {}, {}
    for split, numbers in sizes.items():
        files = {f"{split}2017/{i:012d}.jpg": jpeg(i) for i in numbers}
        zips[split] = write_zip(tmp_path / f"{split}2017.zip", files)
        if split != "unlabeled":
            annotations[f"annotations/instances_{split}2017.json"] = json.dumps(
                {
                    "images": [
                        {"id": i, "file_name": f"{i:012d}.jpg", "height": 8, "width": 10}
                        for i in numbers
                    ],
                    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
                    "annotations": [
                        {"image_id": n, "bbox": [1, 2, 5, 4], "category_id": 18, "iscrowd": 0}
                        for n in list(numbers)[:2]
                    ],
                }
            )
    return {
        "train_zip": zips["train"],
        "val_zip": zips["val"],
        "unlabeled_zip": zips["unlabeled"],
        "annotations_zip": write_zip(tmp_path / "annotations.zip", annotations),
        "data_dir": str(tmp_path / "data"),
        "partial": True,
    }


def test_coco_images_boxes_and_the_unlabeled_split(coco):
    text = prepare_coco.prepare_coco(**coco)
    assert "tfds:coco/2017" in text and "train, unlabeled, validation" in text
    source = open_source("tfds:coco/2017", "train+unlabeled", coco["data_dir"])
    assert len(source) == 7 and source.class_names is None
    for record in (source[i] for i in range(7)):
        assert record.label == -1
        assert record.data == jpeg(int(record.name.removesuffix(".jpg")))
    builder = tfds.builder_from_directory(os.path.join(coco["data_dir"], "coco/2017/1.1.0"))
    decoders = {"image": tfds.decode.SkipDecoding()}
    for example in builder.as_data_source("train", decoders=decoders):
        boxes = example["objects"]["bbox"]
        if example["image/filename"].decode() == "000000000002.jpg":
            assert len(boxes) == 0
        else:  # (x, y, w, h) = (1, 2, 5, 4) px in 10 x 8 px.
            np.testing.assert_allclose(boxes, [[2 / 8, 1 / 10, 6 / 8, 6 / 10]], rtol=1e-6)
            assert list(example["objects"]["label"]) == [1]


def test_coco_splits_come_only_with_their_zips(coco):
    prepare_coco.prepare_coco(**(coco | {"train_zip": None, "val_zip": None}))
    assert len(open_source("tfds:coco/2017", "unlabeled", coco["data_dir"])) == 4
    with pytest.raises(UserError, match=r"split 'train' cannot be read.*unlabeled \(4\)"):
        open_source("tfds:coco/2017", "train", coco["data_dir"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_zip": None, "val_zip": None, "unlabeled_zip": None}, "at least one"),
        ({"val_zip": "/nowhere.zip"}, "/nowhere.zip.*does not exist"),
        ({"partial": False}, "3 images where the published data set has 118287"),
    ],
)
def test_coco_mistakes_are_told(coco, changes, message):
    with pytest.raises(UserError, match=message):
        prepare_coco.prepare_coco(**(coco | changes))


def test_cut_short_zip_is_told(coco):
    with open(coco["val_zip"], "r+b") as file:
        file.truncate(300)
    with pytest.raises(UserError, match="val2017.zip.*cut short"):
        prepare_coco.prepare_coco(**(coco | {"train_zip": None, "unlabeled_zip": None}))


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "images" / name / f"{i}.jpg").write_bytes(jpeg(i + 50 * (name == "dog")))
    return tmp_path / "images"


def nothing_left(data_dir):
    return not os.path.exists(data_dir)


def add_to_zip(path, files):
    with zipfile.ZipFile(path, "a") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def test_what_macos_and_others_put_into_zips_is_left_out_and_named_once(coco, caplog):
    forks = {f"__MACOSX/val2017/._{i:012d}.jpg": b"\0\5\26\7" for i in range(10, 12)}
    add_to_zip(coco["val_zip"], forks | {"val2017/.DS_Store": b"", "val2017/a.HEIC": b"x"})
    fork = "__MACOSX/annotations/._instances_val2017.json"
    add_to_zip(coco["annotations_zip"], {fork: b"\0\5\26\7", "instances_val2017.json.bak": b"{"})
    only_val = coco | {"train_zip": None, "unlabeled_zip": None}
    with caplog.at_level(logging.WARNING):
        prepare_coco.prepare_coco(**only_val)
    source = open_source("tfds:coco/2017", "validation", coco["data_dir"])
    assert sorted(record.name for record in source) == ["000000000010.jpg", "000000000011.jpg"]
    (told,) = (record.getMessage() for record in caplog.records)
    assert "2 x macOS resource fork (the first is __MACOSX/val2017/._0" in told
    assert "1 x hidden file" in told and "1 x .heic file (the first is val2017/a.HEIC)" in told


def test_images_that_the_annotations_do_not_list_are_counted(coco, caplog):
    add_to_zip(coco["val_zip"], {"val2017/other.jpg": jpeg(1)})
    with caplog.at_level(logging.WARNING):
        prepare_coco.prepare_coco(**(coco | {"train_zip": None, "unlabeled_zip": None}))
    (told,) = (record.getMessage() for record in caplog.records)
    assert "1 x image that the annotations do not list" in told and "val2017/other.jpg" in told


@pytest.mark.parametrize("kind", ["html", "json", "bom", "utf16", "page"])
def test_annotations_that_are_no_zip_or_hold_no_json_are_one_line(coco, tmp_path, kind):
    good = json.dumps({"images": [], "annotations": [], "categories": []}).encode()
    contents = {"json": b"[" * 9999, "bom": b"\xef\xbb\xbf" + good}
    contents["utf16"] = good.decode().encode("utf-16")
    contents["page"] = b"<!DOCTYPE html>"
    path = tmp_path / "other.zip"
    if kind == "html":
        path.write_bytes(b"<html>404</html>")
    else:
        write_zip(path, {"annotations/instances_val2017.json": contents[kind]})
    words = {"html": "no such archive", "json": "not JSON", "bom": "lists no images"}
    words |= {"utf16": "UTF-16", "page": "HTML page"}
    with pytest.raises(UserError, match=words[kind]) as refused:
        prepare_coco.prepare_coco(**(coco | {"annotations_zip": str(path)}))
    assert len(str(refused.value).splitlines()) == 1 and nothing_left(coco["data_dir"])


def test_damaged_member_leaves_nothing_half_written(coco):
    with open(coco["val_zip"], "r+b") as file:
        file.seek(90)
        file.write(b"\xff" * 40)
    with pytest.raises(UserError, match="val2017.zip.*Bad CRC"):
        prepare_coco.prepare_coco(**(coco | {"train_zip": None, "unlabeled_zip": None}))
    assert nothing_left(coco["data_dir"])


def test_folder_names_may_be_any_bytes(tmp_path):
    for name in (b"caf\xe9", b"caf\xe8", "été".encode()):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"images", name))
        path = os.path.join(os.fsencode(tmp_path), b"images", name, b"\xff.jpg")
        with open(path, "wb") as file:
            file.write(jpeg(len(name)))
    data_dir = str(tmp_path / "data")
    prepare_folder(
        folder=str(tmp_path / "images"), name="odd", data_dir=data_dir, holdout_percent=0
    )
    source = open_source("tfds:odd", "train", data_dir)
    assert source.class_names == ("caf\\xe8", "caf\\xe9", "été")
    assert {record.name[-5:] for record in source} == {"\ufffd.jpg"}


def test_folder_with_hold_out_leaves_broken_files_out(folder, tmp_path, caplog):
    (folder / "cat" / "3.jpg").write_bytes(b"<html>")
    data_dir = str(tmp_path / "data")
    prepare_folder(folder=str(folder), name="pets", data_dir=data_dir, holdout_percent=20)
    assert "left out 1 x damaged image (the first is cat/3.jpg: not an image" in caplog.text
    names = {}
    for split in ("train", "validation"):
        source = open_source("tfds:pets", split, data_dir)
        assert source.class_names == ("cat", "dog")
        records = [source[i] for i in range(len(source))]
        assert all(source.class_names[r.label] == r.name.split("/")[0] for r in records)
        names[split] = {r.name for r in records}
    assert len(names["train"] | names["validation"]) == 19
    assert not names["train"] & names["validation"] and 3 <= len(names["validation"]) <= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "My Pets"}, "My Pets"), ({"holdout_percent": 100}, "100 is not in 0..99")],
)
def test_folder_mistakes_are_told(folder, tmp_path, changes, message):
    settings = {"folder": str(folder), "name": "pets", "data_dir": str(tmp_path / "data")}
    with pytest.raises(UserError, match=message):
        prepare_folder(**(settings | {"holdout_percent": 0} | changes))


def frame(data):
    """A TFRecord frame; the data checksum is left zero, which readers of lengths never look at."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", prepare_tfrecord._masked_crc(length)) + data + bytes(4)


@pytest.fixture
def tfrecord(folder, tmp_path):
    """(version directory in TFRecord form of the folder's images, the ArrayRecord original)."""
    original = str(tmp_path / "original")
    prepare_folder(folder=str(folder), name="pets", data_dir=original, holdout_percent=0)
    source = tmp_path / "original" / "pets" / "1.0.0"
    target = tmp_path / "old" / "pets" / "1.0.0"
    target.mkdir(parents=True)
    (shard,) = source.glob("*.array_record-*")
    records = array_record_module.ArrayRecordReader(str(shard)).read_all()
    name = shard.name.replace("array_record", "tfrecord")
    (target / name).write_bytes(b"".join(frame(r) for r in records))
    for path in source.glob("*.txt"):
        (target / path.name).write_text(path.read_text())
    (target / "features.json").write_text((source / "features.json").read_text())
    info = json.loads((source / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target, original


def test_tfrecord_checksum_is_crc32c():
    # RFC 3720 B.4: CRC-32C of 32 zero bytes is 0x8A9136AA; masked as TFRecord does it.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert prepare_tfrecord._masked_crc(bytes(32)) == masked


def test_a_shard_that_has_no_room_leaves_nothing(tfrecord, tmp_path):
    source = next(path for path in tmp_path.rglob("*tfrecord-*") if path.is_file())
    before, target = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "shard"
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(CannotSave, match="new cannot be written"), whole_file.saving("new"):
            prepare_tfrecord._rewrite_shard(str(source), str(target), expected=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("shard*"))


def test_tfrecord_is_refused_with_the_command_then_rewritten(tfrecord, tmp_path):
    target, original = tfrecord
    with pytest.raises(UserError, match=r"mcl-jax prepare tfrecord\s+--input"):
        open_source("tfds:pets", "train", str(tmp_path / "old"))
    data_dir = str(tmp_path / "new")
    text = prepare_tfrecord.prepare_tfrecord(input_dir=str(target), data_dir=data_dir)
    assert f"--config.data.data_dir={data_dir}" in text
    new, old = (open_source("tfds:pets", "train", d) for d in (data_dir, original))
    assert len(new) == 20 and [new[i] for i in range(20)] == [old[i] for i in range(20)]
    assert prepare_tfrecord.prepare_tfrecord(input_dir=str(target), data_dir=data_dir) == text


def test_damaged_tfrecords_publish_nothing(tfrecord, tmp_path):
    target, _ = tfrecord
    (shard,) = target.glob("*.tfrecord-*")
    whole = shard.read_bytes()
    first = 16 + struct.unpack("<Q", whole[:8])[0]
    cases = {"middle of a record": whole[:-10], "damaged": whole[:3] + b"\xff" + whole[4:]}
    cases["19 records, its metadata says 20"] = whole[first:]
    for message, data in cases.items():
        shard.write_bytes(data)
        with pytest.raises(UserError, match=message):
            prepare_tfrecord.prepare_tfrecord(input_dir=str(target), data_dir=str(tmp_path / "new"))
        with pytest.raises(UserError, match="no finished"):
            open_source("tfds:pets", "train", str(tmp_path / "new"))


def test_script_prints_one_line_for_a_mistake_and_the_flags_for_success(folder, tmp_path):
    script = os.path.join(os.path.dirname(__file__), "..", "scripts", "prepare_data.py")
    environment = os.environ | {"PYTHONPATH": os.path.join(os.path.dirname(script), "..")}
    command = [sys.executable, script, "folder", "--name=pets", f"--data_dir={tmp_path / 'data'}"]

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=environment
        )

    failed = run("--folder=/nowhere")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    done = run(f"--folder={folder}")
    assert done.returncode == 0, done.stderr
    assert "--config.data.dataset=tfds:pets" in done.stdout
