"""Damaged images, annotation files and archives by the hundred: used, or refused in one line.

Seeded: every run tries the same cases. A case ends with code 0 or 2 and at most one line of error; it
leaves nothing half-written, and no exception that is not a UserError.
"""

import copy
import dataclasses
import io
import json
import os
import random
import tarfile
import time
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from mcl_jax import cli
from mcl_jax.data import image_labels
from mcl_jax.data.decode import DecodeError, decode
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.data.pipeline import batches
from mcl_jax.data.prepare.coco import prepare_coco
from mcl_jax.data.prepare.imagenet import prepare_imagenet
from mcl_jax.data.sources import open_source
from mcl_jax.evaluate.detection.boxed_sources import CocoSource

SECONDS = 10  # no case may take longer, also on a busy machine


def outcome(capsys, function, *arguments, **keywords):
    """Exit code of a command that does this; asserts the conduct that all share."""
    capsys.readouterr()
    started, code = time.monotonic(), 0
    try:
        with cli.mistakes_in_one_line():
            function(*arguments, **keywords)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert time.monotonic() - started < SECONDS
    assert code in (0, 2) and said.count("error:") == (code == 2), said
    if code:
        (line,) = (line for line in said.splitlines() if line.startswith("error:"))
        line.encode("utf-8")
    assert "Traceback" not in said
    return code


def mutated(data, rng):
    """Bytes with a few faults of the kinds that disks, networks and people make."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 4:
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        elif kind == 5 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            head = rng.randrange(min(64, len(data)) + 1)
            data[head : head + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\0"))
    return bytes(data)


def images():
    """One small file of every kind: name -> bytes."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (40, 30))
    deep = pixels.astype(np.uint16) * 16
    found = {
        "png 16": cv2.imencode(".png", deep[..., 0])[1],
        "png rgba 16": cv2.imencode(".png", np.dstack([deep, deep[..., 0]]))[1],
        "tif 16": cv2.imencode(".tif", deep)[1],
        "jp2": cv2.imencode(".jp2", pixels)[1],
        "pgm": cv2.imencode(".pgm", deep[..., 0])[1],
    }
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), form)
        found[form] = buffer.getvalue()
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG", progressive=True)
    Image.fromarray(pixels).convert("CMYK").save(cmyk := io.BytesIO(), "JPEG")
    found |= {"progressive": buffer.getvalue(), "cmyk": cmyk.getvalue()}
    return {name: bytes(data) for name, data in found.items()}


def test_damaged_images_are_decoded_or_refused():
    rng, files = random.Random(1), images()
    counts = {"decoded": 0, "refused": 0}
    for case in range(560):
        name = sorted(files)[case % len(files)]
        data = mutated(files[name], rng)
        started = time.monotonic()
        try:
            canvas, (height, width), _ = decode(data, 32, max_pixels=2**20)
            assert canvas.shape == (32, 32, 3) and canvas.dtype == np.uint8
            assert 1 <= height <= 32 and 1 <= width <= 32, name
            counts["decoded"] += 1
        except DecodeError as error:
            assert str(error)
            counts["refused"] += 1
        assert time.monotonic() - started < SECONDS, name
    print(dict(counts))
    assert min(counts.values()) > 100, counts


def test_a_folder_of_damaged_images_trains_on_what_is_left_or_is_refused(tmp_path, capsys):
    rng, files = random.Random(2), images()
    suffixes = {"JPEG": "jpg", "progressive": "JPG", "cmyk": "jpeg", "GIF": "gif", "PNG": "png"}
    for case in range(60):
        name = rng.choice(sorted(suffixes))
        data = files[name] if case % 3 else mutated(files[name], rng)
        raw = bytes(rng.choice(b"ab\xe9\xff\n '\"$") for _ in range(4)) + b"%d.%s"
        path = os.path.join(os.fsencode(tmp_path), raw % (case, suffixes[name].encode()))
        with open(path, "wb") as file:
            file.write(data)
    source = open_source(f"folder:{tmp_path}", "train", None)
    assert len(source) == 60
    loader = LoaderSettings(
        canvas_size=16,
        batch_size=20,
        process_index=0,
        process_count=1,
        workers=0,
        threads=1,
        max_unreadable_share=1.0,
        unreadable_grace=60,
    )

    def read(share):
        settings = dataclasses.replace(loader, max_unreadable_share=share)
        with batches(source, settings, seed=0, start_step=0, shuffle=True) as stream:
            for _ in range(6):
                next(stream)

    assert outcome(capsys, read, 1.0) == 0
    assert outcome(capsys, read, 0.0) == 2


VALUES = [
    *(None, True, -1, 0, 0.5, 10**30, -(10**30), float("nan"), float("inf"), "", "x", "\ud800"),
    *("a\0b", "../../x", [], [1], [[]], {}, {"id": 1}, "9" * 400, "\udce9", [1, 2, 3, 4]),
]


def spoiled(content, rng):
    """An annotation file with entries replaced, dropped or doubled somewhere."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        node, parent, key = content, None, None
        while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.75):
            key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node, parent = node[key], node
        if parent is None:
            return copy.deepcopy(rng.choice(VALUES))
        kind = rng.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def annotations(folder):
    names = [f"{i}.jpg" for i in range(4)]
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((20, 30, 3), 40 * i, np.uint8))
    return {
        "images": [
            {"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {
                "id": 10 + i,
                "image_id": i % 3,
                "category_id": 1 + 2 * (i % 2),
                "bbox": [i, 1, 5, 6.5],
                "iscrowd": 0,
            }
            for i in range(6)
        ],
    }


def test_spoiled_annotation_files_are_used_or_refused(tmp_path, capsys):
    whole, rng = annotations(tmp_path), random.Random(3)
    path, counts = tmp_path / "instances.json", {0: 0, 2: 0}

    def use():
        labeled = image_labels.open_coco(path, tmp_path)
        assert labeled.labels.shape == (len(labeled.source), len(labeled.class_names))
        source = CocoSource(path, tmp_path)
        for i in range(len(source)):
            try:
                record = source[i]
            except OSError:  # what readers of images count as unreadable
                continue
            boxes = record.boxes
            assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all()
            assert (record.labels < len(source.class_names)).all()
            record.name.encode("utf-8")

    for case in range(400):
        text = json.dumps(spoiled(whole, rng)).encode()
        if case % 4 == 0:
            text = mutated(text, rng)
        path.write_bytes(text)
        counts[outcome(capsys, use)] += 1
    print(dict(counts))
    assert min(counts.values()) > 60, counts


def write_tar(files):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives_are_prepared_or_refused_and_leave_nothing(tmp_path, capsys, kind):
    rng, jpeg = random.Random(4), images()["JPEG"]
    counts = {0: 0, 2: 0}
    data_dir = tmp_path / "data"
    if kind == "zip":
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            for i in range(3):
                archive.writestr(f"val2017/{i}.jpg", jpeg)
        whole = buffer.getvalue()
        with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
            archive.writestr("instances_val2017.json", json.dumps(annotations(tmp_path)))
    else:
        inner = write_tar({f"n01440764_{i}.JPEG": jpeg for i in range(3)})
        whole = write_tar({"n01440764.tar": inner, "n01443537.tar": inner})
    path = tmp_path / f"archive.{kind}"
    for case in range(40):
        path.write_bytes(mutated(whole, rng) if case else whole)
        if kind == "zip":
            code = outcome(
                capsys, prepare_coco,
                train_zip=None, val_zip=str(path), unlabeled_zip=None, partial=True,
                annotations_zip=str(tmp_path / "annotations.zip"), data_dir=str(data_dir / str(case)),
            )  # fmt: skip
        else:
            code = outcome(
                capsys, prepare_imagenet,
                train_tar=str(path), val_tar=None, val_labels=None, meta=None, partial=True,
                data_dir=str(data_dir / str(case)),
            )  # fmt: skip
        counts[code] += 1
        assert (data_dir / str(case)).exists() == (code == 0)
    print(dict(counts))
    assert min(counts.values()) > 2, counts
