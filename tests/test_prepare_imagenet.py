"""Preparing ImageNet from tiny tars in its own shape: labels, resuming, mistakes."""

import io
import logging
import os
import tarfile

import cv2
import numpy as np
import pytest
import scipy.io

from mcl_jax.data.prepare import imagenet as prepare_imagenet
from mcl_jax.data.prepare import jobs
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError

SYNSETS = ["n01440764", "n01443537", "n02085620"]
# The devkit's ids are not in the order of the synsets.
IDS = {1: "n02085620", 2: "n01440764", 3: "n01443537"}


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.fixture
def imagenet(tmp_path):
    """Keyword arguments of a tiny ImageNet: 3 synsets of 4 training images, 5 validation images."""
    inner = {}
    for c, synset in enumerate(SYNSETS):
        files = {f"{synset}_{i}.JPEG": jpeg(10 * c + i) for i in range(4)}
        with open(write_tar(tmp_path / "inner.tar", files), "rb") as file:
            inner[f"{synset}.tar"] = file.read()
    # The tar's own order is not the sorted one.
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (3, 1, 5, 2, 4)}
    labels = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    labels.write_text("1\n2\n3\n1\n2\n")
    table = np.zeros(3, [("ILSVRC2012_ID", object), ("WNID", object)])
    table["ILSVRC2012_ID"], table["WNID"] = list(IDS), list(IDS.values())
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": table})
    return {
        "train_tar": write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner),
        "val_tar": write_tar(tmp_path / "ILSVRC2012_img_val.tar", val),
        "val_labels": str(labels),
        "meta": str(tmp_path / "meta.mat"),
        "data_dir": str(tmp_path / "data"),
        "partial": True,
    }


def validation_labels(data_dir):
    source = open_source("tfds:imagenet2012", "validation", data_dir)
    records = {r.name: r for r in (source[i] for i in range(len(source)))}
    for i in range(1, 6):
        assert records[f"ILSVRC2012_val_{i:08d}.JPEG"].data == jpeg(100 + i)
    return [source.class_names[records[name].label] for name in sorted(records)]


def test_imagenet_images_and_labels(imagenet):
    text = prepare_imagenet.prepare_imagenet(**imagenet)
    assert f"--config.data.data_dir={imagenet['data_dir']}" in text
    assert "--config.data.dataset=tfds:imagenet2012" in text
    source = open_source("tfds:imagenet2012", "train", imagenet["data_dir"])
    assert source.class_names == tuple(SYNSETS) and len(source) == 12
    for record in (source[i] for i in range(12)):
        synset, number = record.name.removesuffix(".JPEG").split("_")
        assert record.label == SYNSETS.index(synset)
        assert record.data == jpeg(10 * record.label + int(number))
    # n-th sorted name gets the n-th label: ids 1 2 3 1 2.
    assert validation_labels(imagenet["data_dir"]) == [IDS[i] for i in (1, 2, 3, 1, 2)]


@pytest.mark.parametrize("form", ["synsets", "names", "csv", "devkit", "text meta"])
def test_imagenet_label_files_agree(imagenet, tmp_path, form):
    truth = [IDS[i] for i in (1, 2, 3, 1, 2)]
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 6)]
    pairs = list(zip(names, truth, strict=True))
    path = tmp_path / "labels"
    if form == "synsets":
        path.write_text("\n".join(truth))
    elif form == "names":
        path.write_text("\n".join(f"{n}.JPEG {t}" for n, t in reversed(pairs)))
    elif form == "csv":
        rows = "\n".join(f"{n},{t} 1 2 3 4" for n, t in pairs)
        path.write_text("ImageId,PredictionString\n" + rows)
    elif form == "devkit":
        path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            tar.add(imagenet["val_labels"], "devkit/data/ILSVRC2012_validation_ground_truth.txt")
            tar.add(imagenet["meta"], "devkit/data/meta.mat")
    else:
        path.write_text("1\n2\n3\n1\n2\n")
        (tmp_path / "map.txt").write_text("\n".join(f"{k} {v}" for k, v in IDS.items()))
    meta = str(tmp_path / "map.txt") if form == "text meta" else None
    changes = {"train_tar": None, "val_labels": str(path), "meta": meta}
    prepare_imagenet.prepare_imagenet(**(imagenet | changes))
    assert validation_labels(imagenet["data_dir"]) == truth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tar": None, "val_tar": None}, "give --train_tar"),
        ({"train_tar": "/nowhere.tar"}, "/nowhere.tar.*does not exist"),
        ({"val_labels": None}, "--val_tar needs --val_labels"),
        ({"meta": None}, "give --meta"),
        ({"partial": False}, "train has 12 images where the published data set has 1281167"),
    ],
)
def test_imagenet_mistakes_are_told(imagenet, changes, message):
    with pytest.raises(UserError, match=message):
        prepare_imagenet.prepare_imagenet(**(imagenet | changes))
    with pytest.raises(UserError, match="mcl-jax prepare imagenet"):
        open_source("tfds:imagenet2012", "train", imagenet["data_dir"])


def test_imagenet_label_count_must_fit(imagenet, tmp_path):
    (tmp_path / "few").write_text("n01440764\n")
    with pytest.raises(UserError, match="1 labels for 5 images"):
        prepare_imagenet.prepare_imagenet(**(imagenet | {"val_labels": str(tmp_path / "few")}))


def test_cut_short_tar_publishes_nothing(imagenet):
    with open(imagenet["train_tar"], "r+b") as file:
        file.truncate(os.path.getsize(imagenet["train_tar"]) * 2 // 3)
    with pytest.raises(UserError, match="tar"):
        prepare_imagenet.prepare_imagenet(**(imagenet | {"val_tar": None}))
    with pytest.raises(UserError, match="no finished data set|does not exist"):
        open_source("tfds:imagenet2012", "train", imagenet["data_dir"])


def test_resource_forks_in_tars_are_left_out_and_named_once(imagenet, tmp_path, caplog):
    inner = {"._n01440764_0.JPEG": b"\0\5\26\7", "n01440764_0.JPEG": jpeg(0), "notes.txt": b"x"}
    with open(write_tar(tmp_path / "inner.tar", inner), "rb") as file:
        outer = {"./._n01440764.tar": b"\0\5\26\7", "./n01440764.tar": file.read()}
    val = {"._ILSVRC2012_val_00000001.JPEG": b"\0", "./ILSVRC2012_val_00000001.JPEG": jpeg(1)}
    (tmp_path / "one").write_text("n01440764\n")
    changes = {
        "train_tar": write_tar(tmp_path / "forks.tar", outer),
        "val_tar": write_tar(tmp_path / "val.tar", val),
        "val_labels": str(tmp_path / "one"),
    }
    with caplog.at_level(logging.WARNING):
        prepare_imagenet.prepare_imagenet(**(imagenet | changes))
    for split in ("train", "validation"):
        (record,) = open_source("tfds:imagenet2012", split, imagenet["data_dir"])
        assert record.label == 0 and not record.name.startswith(".")
    train, val = (record.getMessage() for record in caplog.records)
    assert "2 x macOS resource fork" in train and "1 x .txt file (the first is notes.txt)" in train
    assert "1 x macOS resource fork" in val


def devkit(imagenet, tmp_path, kind):
    """(value of --val_labels, value of --meta) of a damaged devkit."""
    with open(imagenet["val_labels"], "rb") as file:
        labels = file.read()
    with open(imagenet["meta"], "rb") as file:
        meta = file.read()
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    page = b"<!DOCTYPE html><html>404</html>"
    if kind in ("page", "labels page", "labels utf16"):
        path = path if kind == "page" else tmp_path / "labels.txt"
        path.write_bytes(labels.decode().encode("utf-16") if kind == "labels utf16" else page)
        return str(path), imagenet["meta"]
    labels = page if kind == "page inside" else b"\xef\xbb\xbf" + labels
    meta = meta[: len(meta) // 2] if kind == "cut meta" else meta
    names = {"meta.mat": meta, "ILSVRC2012_validation_ground_truth.txt": labels}
    names |= {f"._{name}": b"\0" for name in names}
    with tarfile.open(path, "w:gz") as tar:
        for name, data in names.items():
            member = tarfile.TarInfo(f"devkit/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    return str(path), None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "devkit_t12.tar.gz.*cut short"),
        ("page", "devkit_t12.tar.gz.*no such archive"),
        ("page inside", "ground_truth.txt is an HTML page"),
        ("cut meta", "is not meta.mat"),
        ("labels page", "labels.txt.*HTML page"),
        ("labels utf16", "labels.txt.*UTF-16 text; save it as UTF-8"),
    ],
)
def test_damaged_devkits_are_one_line(imagenet, tmp_path, kind, message):
    labels, meta = devkit(imagenet, tmp_path, kind)
    changes = {"train_tar": None, "val_labels": labels, "meta": meta}
    with pytest.raises(UserError, match=message) as refused:
        prepare_imagenet.prepare_imagenet(**(imagenet | changes))
    assert len(str(refused.value).splitlines()) == 1
    assert not os.path.exists(imagenet["data_dir"])


def test_a_mark_in_front_of_labels_is_accepted(imagenet, tmp_path):
    labels, meta = devkit(imagenet, tmp_path, "bom")
    changes = {"train_tar": None, "val_labels": labels, "meta": meta}
    prepare_imagenet.prepare_imagenet(**(imagenet | changes))
    assert validation_labels(imagenet["data_dir"]) == [IDS[i] for i in (1, 2, 3, 1, 2)]


def test_kaggles_archive_is_told_what_to_do_with(imagenet, tmp_path):
    path = tmp_path / "imagenet_object_localization_patched2019.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(imagenet["val_labels"], "ILSVRC/Data/CLS-LOC/train/n01440764/a.JPEG")
    with pytest.raises(UserError, match="compressed tar.*Kaggle.*CLS-LOC/train"):
        prepare_imagenet.prepare_imagenet(**(imagenet | {"train_tar": str(path)}))
    assert not os.path.exists(imagenet["data_dir"])


def test_finished_splits_are_skipped_and_later_ones_added(imagenet, capsys):
    prepare_imagenet.prepare_imagenet(**(imagenet | {"val_tar": None}))
    final = os.path.join(imagenet["data_dir"], "imagenet2012", "5.1.0")
    shard = os.path.join(final, "imagenet2012-train.array_record-00000-of-00001")
    before = os.stat(shard).st_mtime_ns
    prepare_imagenet.prepare_imagenet(**imagenet)
    assert "train: 12 images, already prepared: skipped" in capsys.readouterr().out
    assert os.stat(shard).st_mtime_ns == before
    assert jobs.split_counts(final) == {"train": 12, "validation": 5}
    assert len(open_source("tfds:imagenet2012", "train+validation", imagenet["data_dir"])) == 17


def test_interrupted_split_is_not_mistaken_and_restarts(imagenet, monkeypatch):
    genuine = prepare_imagenet._example

    def interrupted(tar, member, synset):
        if member.name.endswith("_2.JPEG"):
            raise KeyboardInterrupt
        return genuine(tar, member, synset)

    arguments = imagenet | {"val_tar": None}
    monkeypatch.setattr(prepare_imagenet, "_example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_imagenet.prepare_imagenet(**arguments)
    final = os.path.join(imagenet["data_dir"], "imagenet2012", "5.1.0")
    # What kill -9 leaves: shards of an unfinished split, aside and not named by the metadata.
    os.makedirs(os.path.join(final, ".train.writing"), exist_ok=True)
    with open(os.path.join(final, ".train.writing", "half"), "w") as file:
        file.write("half")
    assert jobs.split_counts(final) == {}
    with pytest.raises(UserError, match="no finished data set"):
        open_source("tfds:imagenet2012", "train", imagenet["data_dir"])
    monkeypatch.setattr(prepare_imagenet, "_example", genuine)
    prepare_imagenet.prepare_imagenet(**arguments)
    assert jobs.split_counts(final) == {"train": 12}
    assert not [name for name in os.listdir(final) if "writing" in name]


def test_other_classes_do_not_mix(imagenet, tmp_path):
    prepare_imagenet.prepare_imagenet(**(imagenet | {"val_tar": None}))
    (tmp_path / "two").write_text("\n".join([SYNSETS[0], SYNSETS[1]] * 2 + [SYNSETS[0]]))
    changes = {"train_tar": None, "val_labels": str(tmp_path / "two")}
    with pytest.raises(UserError, match="other features or classes"):
        prepare_imagenet.prepare_imagenet(**(imagenet | changes))


def test_many_shards_hold_every_image_and_mix_the_classes(imagenet, monkeypatch):
    monkeypatch.setattr(jobs, "_SHARD_BYTES", os.path.getsize(imagenet["train_tar"]) // 3)
    prepare_imagenet.prepare_imagenet(**(imagenet | {"val_tar": None}))
    source = open_source("tfds:imagenet2012", "train", imagenet["data_dir"])
    assert len({source[i].name for i in range(12)}) == 12
    half = open_source("tfds:imagenet2012", "train[:50%]", imagenet["data_dir"])
    assert len({half[i].label for i in range(len(half))}) > 1
