"""Which sub-folders name classes: trees with splits, with annotations, and what to give instead."""

import re

import pytest
from image_folders import names_of, write_images

from mcl_jax.data.record import why_unlabeled
from mcl_jax.data.sources import open_source


def told(caplog):
    return [record.getMessage() for record in caplog.records]


# files -> what is said, and the folder to give
LAYOUTS = {
    "train, val": (
        ["train/a/1.png", "train/b/2.png", "val/a/3.png"],
        r"the splits train \(2 images\), val \(1 images\): all of them are taken as one",
        "/train for one of them, with its sub-folders as classes",
    ),
    "COCO": (
        ["test2017/1.png", "train2017/2.png", "train2017/3.png", "val2017/4.png"],
        r"the splits test2017 \(1 images\), train2017 \(2 images\), val2017",
        "/train2017 for one of them",
    ),
    "sets": (["test_set/a/1.png", "Train_Set/a/2.png"], "splits Train_Set", "/Train_Set/a for one"),
    "long names": (["training/1.png", "validation/2.png"], "splits training", "/training for one"),
    "dev": (["dev/1.png", "train/2.png", "unlabeled_images/3.png"], "splits dev", "/train for one"),
    "STL-10": (["labelled/1.png", "unlabelled/2.png"], "the splits labelled", "/labelled for one"),
    "CycleGAN": (
        ["testA/1.png", "trainA/2.png", "trainB/3.png"],
        "splits testA",
        "/trainA for one",
    ),
    "Carvana": (
        ["test/1.png", "train/2.png", "train_masks/3.png"],
        "splits test",
        "/train for one",
    ),
    "DIV2K": (
        ["DIV2K_train_HR/1.png", "DIV2K_valid_HR/2.png"],
        "splits DIV2K_train_HR",
        "/DIV2K_train_HR for one",
    ),
    "Intel": (
        ["seg_pred/1.png", "seg_test/2.png", "seg_train/seg_train/3.png"],
        "splits seg_pred",
        "/seg_train/seg_train for one",
    ),
    "a prefix": (
        [
            "ILSVRC2012_img_train/a/1.png",
            "ILSVRC2012_img_train/b/1.png",
            "ILSVRC2012_img_val/2.png",
        ],
        "splits ILSVRC2012_img_train",
        "/ILSVRC2012_img_train for one of them, with its sub-folders as classes",
    ),
    "YOLO": (
        ["images/train/1.png", "images/val/2.png"],
        "has one sub-folder, images, and so no classes",
        "/images/train",
    ),
    "YOLO with masks": (
        ["images/train/1.png", "images/val/2.png", "labels/train/1.png", "labels/val/2.png"],
        r"the kinds of files images \(2 images\), labels \(2 images\): all of them are taken as one",
        "/images/train for one of them",
    ),
    "Roboflow": (
        ["test/images/1.png", "train/images/2.png", "valid/images/3.png"],
        "the splits test",
        "/train/images for one of them",
    ),
    "PASCAL VOC": (
        ["JPEGImages/1.png", "SegmentationClass/1.png", "SegmentationObject/1.png"],
        "the kinds of files JPEGImages",
        "/JPEGImages for one of them",
    ),
    "inside another": (
        ["data/train/a/1.png", "data/train/b/2.png", "data/val/a/3.png"],
        "one sub-folder, data",
        "/data/train, with its sub-folders as classes",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_kinds_of_files_are_no_classes(tmp_path, caplog, layout):
    names, words, give = LAYOUTS[layout]
    source, _ = (open_source(write_images(tmp_path, names), "train", None) for _ in range(2))
    assert source.class_names is None and set(source.labels) == {-1}
    assert list(source.files) == sorted(names)  # all of them, in the order of all folders
    (message,) = told(caplog)
    assert re.search(words, message) and message == why_unlabeled(source)
    assert message.endswith(f"give folder:{tmp_path}{give}") or (
        f"give folder:{tmp_path}{give} of them" in message
    )
    given = re.search(r"give (folder:[^ ,]+)", message)[1]
    classes = open_source(given, "train", None).class_names
    assert (classes is not None) == message.endswith("with its sub-folders as classes")


CLASSES = {
    "words inside": ["contest/1.png", "validator/2.png"],
    "with and without": ["with_mask/1.png", "without_mask/2.png"],
    "vehicles": ["bus/1.png", "train/2.png"],
    "numbered": ["label_0/1.png", "label_1/2.png"],
    "developed": ["developed/1.png", "tested/2.png"],
    "annotations alone": ["label/1.png", "mask/2.png"],
    "domains": ["painting/1.png", "photo/2.png", "sketch/3.png"],
}


@pytest.mark.parametrize("names", CLASSES.values(), ids=CLASSES)
def test_classes_stay_classes_without_a_word(tmp_path, caplog, names):
    source = open_source(write_images(tmp_path, names), "train", None)
    assert source.class_names == tuple(name.partition("/")[0] for name in names)
    assert not caplog.records


@pytest.mark.parametrize("split", ["train", "Train2017"])
def test_splits_among_other_folders_are_classes_but_not_without_a_word(tmp_path, caplog, split):
    dataset = write_images(tmp_path, [f"{split}/1.png", "val/2.png", "extra/3.png"])
    source = open_source(dataset, "train", None)
    assert source.class_names == tuple(sorted((split, "extra", "val")))
    (message,) = told(caplog)
    assert f"sub-folders {split}, val are taken for classes" in message
    assert message.endswith(f"give {dataset}/{split}")


def test_splits_inside_classes_are_taken_as_one_but_not_without_a_word(tmp_path, caplog):
    names = [f"{name}/{split}/1.png" for name in ("bottle", "cable") for split in ("test", "train")]
    dataset = write_images(tmp_path, names)
    source = open_source(dataset, "train", None)
    assert source.class_names == ("bottle", "cable") and names_of(source) == names
    (message,) = told(caplog)
    assert "the splits in them (test, train) as one" in message
    assert message.endswith(f"if they are no classes, give {dataset}/bottle/train")
