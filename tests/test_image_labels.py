"""Image-level labels of COCO's files, TFDS data sets and folders against counts by hand.

Shapes: labels int8 [n, C].
"""

import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcl_jax.data import image_labels
from mcl_jax.data.prepare.jobs import JobBuilder, SplitJob, write_splits
from mcl_jax.errors import UserError

NAMES = ("bird", "cat", "dog")
# per image (class, difficult) of its objects
OBJECTS = ([(0, 0), (0, 1), (2, 0)], [(1, 1)], [], [(1, 1), (1, 0), (2, 1)])
EXPECTED = [[1, 0, 1], [0, -1, 0], [0, 0, 0], [0, 1, -1]]


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(len(OBJECTS)):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    return folder


def test_coco_files_by_hand(folder, tmp_path):
    entries = [(i, k, d) for i, objects in enumerate(OBJECTS) for k, d in objects]
    content = {
        "images": [
            {"id": 9 - i, "file_name": f"{i}.png", "height": 8, "width": 10} for i in range(4)
        ],
        "categories": [{"id": 7 - k, "name": NAMES[2 - k]} for k in range(3)],
        "annotations": [
            {"id": n, "image_id": 9 - i, "category_id": 5 + k, "bbox": [1, 1, 4, 4], "difficult": d}
            for n, (i, k, d) in enumerate(entries)
        ],
    }
    content["annotations"][0] |= {"iscrowd": 1}  # a crowd of birds shows birds
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    labeled = image_labels.open_coco(path, folder)
    assert labeled.class_names == NAMES and labeled.labels.tolist() == EXPECTED
    assert labeled.source[2].name == "2.png" and labeled.source[2].data.startswith(b"\x89PNG")
    with pytest.raises(UserError, match="holds no image of .*a.json, e.g. 0.png"):
        image_labels.open_coco(path, tmp_path)
    with pytest.raises(UserError, match="nowhere' does not exist; give the folder of the images"):
        image_labels.open_coco(path, tmp_path / "nowhere")


class Written(JobBuilder, skip_registration=True):
    """Tiny data sets whose features are given."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, features, **given):
        self._features = {"image": tfds.features.Image()} | features
        super().__init__(**given)

    def _info(self):
        features = tfds.features.FeaturesDict(self._features)
        return tfds.core.DatasetInfo(builder=self, features=features)


def write(directory, features, examples):
    def read():
        for i, example in enumerate(examples):
            yield (
                str(i),
                {"image": cv2.imencode(".png", picture(i)[..., ::-1])[1].tobytes()} | example,
            )

    builder = Written(
        features,
        jobs=[SplitJob("train", read, input_bytes=1000, expected=None)],
        data_dir=str(directory),
    )
    write_splits(builder, partial=True)


KIND = tfds.features.ClassLabel(names=list(NAMES))
POSE = tfds.features.ClassLabel(names=["front", "left"])
BOXES = {"label": KIND, "pose": POSE, "is_difficult": np.bool_}
FEATURES = {
    "voc": {
        "objects": tfds.features.Sequence(BOXES),
        "labels": tfds.features.Sequence(KIND),
        "labels_no_difficult": tfds.features.Sequence(KIND),
    },
    "coco": {"objects": tfds.features.Sequence({"label": KIND})},
    "lists": {"labels": tfds.features.Sequence(KIND)},
    "single": {"label": KIND},
}


@pytest.mark.parametrize("kind", FEATURES)
def test_tfds_by_hand(kind, tmp_path):
    """As VOC 2007 (objects may be difficult), COCO, a list of classes, and one class an image."""
    examples, expected = [], np.array(EXPECTED)
    for objects in OBJECTS:
        classes = [k for k, _ in objects]
        boxes = [{"label": k, "pose": 1, "is_difficult": bool(d)} for k, d in objects]
        if kind == "coco":
            boxes = [{"label": k} for k in classes]
        certain = [k for k, difficult in objects if not difficult]
        features = {"objects": boxes, "labels": classes, "labels_no_difficult": certain}
        features["label"] = classes[0] if classes else 1
        examples.append({name: features[name] for name in FEATURES[kind]})
    if kind in ("coco", "lists"):
        expected = np.abs(expected)
    elif kind == "single":
        expected = np.eye(3, dtype=int)[[0, 1, 1, 1]]
    write(tmp_path, FEATURES[kind], examples)
    labeled = image_labels.open_labeled("tfds:written", "train", str(tmp_path))
    # shards keep their own order: images tell which example is which
    order = [
        next(i for i in range(4) if (decoded(labeled.source[n].data) == picture(i)).all())
        for n in range(4)
    ]
    assert sorted(order) == [0, 1, 2, 3] and labeled.class_names == NAMES
    np.testing.assert_array_equal(labeled.labels, expected[order])


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_data_without_labels_are_refused(tmp_path):
    write(tmp_path, {}, [{}])
    with pytest.raises(UserError, match="has no labels: neither objects, nor labels, nor a label"):
        image_labels.open_labeled("tfds:written", "train", str(tmp_path))


def test_folders_have_one_label_an_image(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(0))
    labeled = image_labels.open_labeled(f"folder:{tmp_path}", "train", None)
    assert labeled.labels.tolist() == [[1, 0], [1, 0], [0, 1]] and labeled.class_names == (
        "cat",
        "dog",
    )
