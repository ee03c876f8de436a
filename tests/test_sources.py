"""Opening data sets by name: folders, splits, labels, and errors that say what to do."""

import os
import pickle
import shutil

import pytest
from image_folders import names_of, write_images

from mcl_jax.data.prepare.folder import prepare_folder
from mcl_jax.data.record import data_digest, why_unlabeled
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError


def test_flat_folder_has_no_labels_and_is_sorted(tmp_path):
    dataset = write_images(tmp_path, ["b.png", "a.JPG", "c/d.png", "c/e.webp"])
    for stray in ("readme.txt", ".hidden.png", "__MACOSX/x.png", ".git/y.png"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_bytes(b"")
    source = open_source(dataset, "train", None)
    assert names_of(source) == ["a.JPG", "b.png", "c/d.png", "c/e.webp"]
    assert source.class_names is None and {source[i].label for i in range(4)} == {-1}
    assert source[0].data == (tmp_path / "a.JPG").read_bytes()


def test_sub_folders_name_classes(tmp_path):
    dataset = write_images(tmp_path, ["dog/1.png", "cat/deep/2.png", "cat/3.png", "ant/4.png"])
    source = open_source(dataset, "train", None)
    assert source.class_names == ("ant", "cat", "dog")
    labels = {source[i].name: source[i].label for i in range(4)}
    assert labels == {"ant/4.png": 0, "cat/3.png": 1, "cat/deep/2.png": 1, "dog/1.png": 2}


@pytest.mark.parametrize(
    "names",
    [["one/1.png", "one/2.png"], ["train/1.png", "val/2.png"], ["a/1.png", "b/1.png", "2.png"]],
)
def test_one_folder_split_folders_and_loose_images_name_no_classes(tmp_path, names):
    source = open_source(write_images(tmp_path, names), "train", None)
    assert source.class_names is None and source[0].label == -1


def test_slices_are_disjoint_complete_and_mixed(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    dataset = write_images(tmp_path, names)
    train, held = (open_source(dataset, s, None) for s in ("train[:75%]", "train[75%:]"))
    assert (len(train), len(held)) == (30, 10)
    assert sorted(names_of(train) + names_of(held)) == sorted(names)
    assert names_of(held) == sorted(names_of(held))
    # Both halves keep the classes of the whole folder, and the hash mixes them.
    assert train.class_names == held.class_names == ("a", "b")
    assert {held[i].label for i in range(10)} == {0, 1}
    again = open_source(dataset, "train[-25%:]", None)
    assert names_of(again) == names_of(held)
    assert len(open_source(dataset, "train[:5]+train[35:]", None)) == 10
    assert len(open_source(dataset, "train[:5]+train", None)) == 40


def test_links_are_followed_and_loops_end(tmp_path):
    write_images(tmp_path / "far", ["1.png"])
    dataset = write_images(tmp_path / "near", ["2.png"])
    os.symlink(tmp_path / "far", tmp_path / "near" / "link")
    os.symlink(tmp_path / "near", tmp_path / "near" / "loop")
    assert names_of(open_source(dataset, "train", None)) == ["2.png", "link/1.png"]


@pytest.fixture
def prepared(tmp_path):
    write_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    data_dir = str(tmp_path / "data")
    prepare_folder(
        folder=str(tmp_path / "images"), name="mine", data_dir=data_dir, holdout_percent=20
    )
    return data_dir


def test_sources_survive_pickling(prepared, tmp_path):
    for dataset in ("tfds:mine", f"folder:{tmp_path / 'images'}"):
        source = open_source(dataset, "train", prepared)
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == len(source) and copy[1] == source[1]
        assert copy.class_names == source.class_names == ("a", "b")


def test_tfds_splits_slices_and_versions(prepared):
    assert len(open_source("tfds:mine", "train+validation", prepared)) == 10
    assert len(open_source("tfds:mine:1.0.0", "train[:50%]+validation", prepared)) == 6


def test_newest_version_is_read(prepared):
    root = os.path.join(prepared, "mine")
    os.rename(os.path.join(root, "1.0.0"), os.path.join(root, "10.0.0"))
    info = os.path.join(root, "10.0.0", "dataset_info.json")
    with open(info) as file:
        text = file.read().replace('"1.0.0"', '"10.0.0"')
    with open(info, "w") as file:
        file.write(text)
    for unfinished in ("9.0.0", "11.0.0.incompleteABC", "12.0.0"):
        os.makedirs(os.path.join(root, unfinished))
    assert len(open_source("tfds:mine", "train", prepared)) == 8


def test_default_directory_of_tfds(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", prepared)
    assert len(open_source("tfds:mine", "train", None)) == 8


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("imagenet", "train", "unknown data set 'imagenet'"),
        ("folder:", "train", "unknown data set 'folder:'"),
        ("folder:/nowhere", "train", "folder '/nowhere' does not exist"),
        ("tfds:", "train", "unknown data set 'tfds:'"),
        ("tfds:a b", "train", "'a b' is not NAME"),
        ("tfds:other", "train", "data_dir holds: mine.*mcl-jax prepare"),
        ("tfds:imagenet2012", "train", "mcl-jax prepare imagenet"),
        ("tfds:mine:2.0.0", "train", "version 2.0.0"),
        ("tfds:mine", "test", r"split 'test' cannot be read.*train \(8\), validation \(2\)"),
        ("tfds:mine", "train[", r"split 'train\[' cannot be read"),
        ("tfds:mine", "train[:0]", "is empty"),
    ],
)
def test_mistakes_are_told(prepared, dataset, split, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(dataset, split, prepared)
    assert "\n" not in str(caught.value)


def test_wrong_data_dir_and_missing_config_are_told(prepared, tmp_path):
    with pytest.raises(UserError, match="'/nowhere' does not exist.*mcl-jax prepare coco"):
        open_source("tfds:coco/2017", "train", "/nowhere")
    os.makedirs(tmp_path / "data" / "many")
    os.rename(os.path.join(prepared, "mine"), tmp_path / "data" / "many" / "one")
    with pytest.raises(UserError, match="name one, e.g. tfds:many/one"):
        open_source("tfds:many", "train", prepared)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "no split 'test'"),
        ("train[5:2]", "is empty"),
        ("train[x]", r"no split 'train\[x\]'"),
    ],
)
def test_bad_folder_splits_are_told(tmp_path, split, message):
    dataset = write_images(tmp_path, ["1.png", "2.png"])
    with pytest.raises(UserError, match=message):
        open_source(dataset, split, None)


def test_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no image file"):
        open_source(f"folder:{tmp_path}", "train", None)


def test_tfds_digest_is_that_of_a_copy_and_changes_with_the_split(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    here, there = (open_source("tfds:mine", "train", str(d)) for d in (prepared, tmp_path / "copy"))
    assert data_digest(here) == data_digest(there) != ""
    assert data_digest(open_source("tfds:mine", "train[:4]", str(prepared))) != data_digest(here)


def test_damaged_tfds_data_are_told_or_unreadable(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    folder = tmp_path / "copy" / "mine" / "1.0.0"
    (shard,) = folder.glob("*train*array_record*")
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:70_000], whole[:99]):
        shard.write_bytes(damaged)
        source = open_source("tfds:mine", "train", str(tmp_path / "copy"))
        with pytest.raises(OSError, match="record 3 .*cannot be read"):
            source[3]
        assert why_unlabeled(source) == ""
    shard.unlink()
    with pytest.raises(UserError, match="1 of 1 files of split 'train' are missing"):
        open_source("tfds:mine", "train", str(tmp_path / "copy"))
    for name in ("features.json", "dataset_info.json"):
        (folder / name).write_text("{")
        with pytest.raises(UserError, match="is damaged; copy or prepare it again"):
            open_source("tfds:mine", "train", str(tmp_path / "copy"))
