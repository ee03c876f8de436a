"""The probe's images: sources, budgets, augmentation. Boxes must stay on their objects."""

import json
import os

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_coco_json import content
from test_prepare_data import coco, jpeg  # noqa: F401  (a fixture)

from mcl_jax.data.prepare.coco import prepare_coco
from mcl_jax.data.scenes import builder as scenes
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import augmentation
from mcl_jax.evaluate.detection.augmentation import Placement
from mcl_jax.evaluate.detection.boxed_images import BoxedSet, joined, padded, read_ahead
from mcl_jax.evaluate.detection.boxed_sources import CocoSource, open_boxes
from mcl_jax.evaluate.detection.data import choose, load

SIDE = 48
BRIGHT = np.array([200, 220, 240])


def boxed(source, **changes):
    values = {"rows": range(len(source)), "image_size": 64, "cache_bytes": 0, "max_unreadable": 0}
    return BoxedSet(source, **(values | changes))


def test_coco_json_and_tfds_give_the_same_arrays(coco, tmp_path):  # noqa: F811
    """A tiny COCO as its zips -> ArrayRecord, and as its JSON with loose images."""
    prepare_coco(**coco)
    tfds_set = boxed(open_boxes("tfds:coco/2017", "train", coco["data_dir"]))
    whole = {
        "images": [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": 8, "width": 10} for i in range(3)
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": n, "bbox": [1, 2, 5, 4], "category_id": 18, "iscrowd": 0} for n in (0, 1)
        ],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(whole))
    for i in range(3):
        (tmp_path / f"{i:012d}.jpg").write_bytes(jpeg(i))
    json_set = boxed(CocoSource(path, tmp_path))
    assert json_set.class_names == tfds_set.class_names == ("person", "dog")
    names = [tfds_set.source[i].name for i in range(3)]  # in hashed order
    order = [names.index(f"{i:012d}.jpg") for i in range(3)]
    for a, b in zip(
        jax.tree.leaves(json_set.read(range(3))), jax.tree.leaves(tfds_set.read(order)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    truth = json_set.read([0]).truth
    np.testing.assert_allclose(truth.boxes[0, 0], [2, 1, 6, 6], rtol=1e-6)
    assert truth.labels[0].tolist() == [1] + [-1] * 7


@pytest.fixture
def photos(tmp_path):
    """40 images of 20 x 30 px as a COCO JSON; image i has 1 + i % 3 boxes, the last one a crowd."""
    images, annotations = [], []
    for i in range(40):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((20, 30, 3), i, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": 20, "width": 30})
        for k in range(1 + i % 3):
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 2 + 7 * (k % 2),
                 "bbox": [k, 2, 10, 8], "iscrowd": int(k == 2)}
            )  # fmt: skip
    path = tmp_path / "photos.json"
    path.write_text(json.dumps(content(images=images, annotations=annotations)))
    return path


def test_budgets_are_nested_and_seeded(photos):
    whole = boxed(CocoSource(photos, photos.parent))
    for seed in (0, 1, 2):
        orders = [list(whole.first(count, seed).rows) for count in (3, 10, 40)]
        assert orders[0] == orders[1][:3] and orders[1] == orders[2][:10]
        assert sorted(orders[2]) == list(range(40))
        assert (orders[2] == list(range(40))) == (seed == 0)
        assert list(whole.first(10, seed).rows) == orders[1]
    assert list(whole.first(10, 1).rows) != list(whole.first(10, 2).rows)
    assert whole.first(None, 1) is whole


def test_images_are_read_when_they_are_asked_for_and_kept_only_if_all_fit(photos):
    kept, read = (
        boxed(CocoSource(photos, photos.parent), cache_bytes=size, image_size=32)
        for size in (40 * 32 * 32 * 3, 40 * 32 * 32 * 3 - 1)
    )
    first = kept.read([7]), read.read([7])
    (photos.parent / "7.png").unlink()
    np.testing.assert_array_equal(kept.read([7]).images, first[1].images)
    assert first[0].images[0, 19, 29].tolist() == [7, 7, 7] and not first[0].images[0, 20:].any()
    with pytest.raises(UserError, match="1 of 40 images cannot be read"):
        read.read([7])


def test_an_unreadable_image_is_counted_and_stands_without_boxes(photos, caplog):
    (photos.parent / "4.png").write_bytes(b"not an image")
    data = boxed(CocoSource(photos, photos.parent), max_unreadable=0.05)
    for _ in range(2):
        batch = data.read([3, 4, 5])
    assert (batch.truth.labels >= 0).sum(1).tolist() == [1, 0, 3] and not batch.images[1].any()
    assert list(data.unreadable) == ["4.png"] and len(caplog.records) == 1
    assert batch.truth.ignored.sum() == 1


def test_batches_of_truth_are_joined(photos):
    data = boxed(CocoSource(photos, photos.parent))
    whole = data.read(range(6)).truth
    parts = joined([data.read(range(2)).truth, data.read(range(2, 6)).truth])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
    many = padded([np.ones((9, 4))], [np.zeros(9)], [np.zeros(9)])
    assert many.labels.shape == (1, 16) and (many.labels[0, 9:] == -1).all()


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    assert list(read_ahead(lambda i: i * i, range(20), 4)) == [i * i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda i: 1 / i, [1, 0], 3))


def picture(height, width, box):
    """uint8 [SIDE, SIDE, 3]: a dark image with a bright box in it."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:height, :width] = 30
    top, left, bottom, right = box
    image[top:bottom, left:right] = BRIGHT
    return image


def random_pictures(rng, count):
    """Images, extents int32 [count, 2] and boxes float32 [count, 1, 4] on their bright areas."""
    images, extents, boxes = [], [], []
    for _ in range(count):
        height, width = rng.integers(24, SIDE + 1, 2)
        size = rng.integers(8, 18, 2)
        corner = [
            rng.integers(0, side - s + 1) for side, s in zip((height, width), size, strict=True)
        ]
        box = np.array([*corner, *(corner + size)])
        images.append(picture(height, width, box))
        extents.append((height, width))
        boxes.append([box])
    return np.stack(images), np.array(extents, np.int32), np.array(boxes, np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_stay_on_their_objects_through_every_augmentation(seed):
    """16 images of random size, mirrored or not, shrunk to a half and enlarged to twice the size."""
    rng = np.random.default_rng(seed)
    images, extents, boxes = random_pictures(rng, 16)
    mirrored = rng.integers(0, 2, 16).astype(bool)
    placement = augmentation.draw_placement(
        jax.random.key(seed), extents, image_size=SIDE, scales=(0.5, 2.0)
    )
    turned = augmentation.mirror(images, extents, mirrored)
    placed, inside = map(np.asarray, augmentation.place(turned, extents, placement))
    moved = augmentation.mirror_boxes(boxes, extents, mirrored)
    moved, labels = map(
        np.asarray,
        augmentation.place_boxes(
            moved, np.zeros((16, 1), int), placement, image_size=SIDE, min_visible=0.25
        ),
    )
    assert (labels == 0).any() and placed.shape == images.shape
    for image, shown, (box,), (label,), scale in zip(
        placed, inside, moved, labels, np.asarray(placement.scale), strict=True
    ):
        bright = image[..., 0] > 100
        assert not bright[~shown].any() and (image[~shown] == 0).all()
        area = (box[2:] - box[:2]).prod()
        assert abs(bright.sum() - area) <= 2 * scale + 0.35 * np.sqrt(area) * 4
        if label == 0:
            rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
            edges = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
            np.testing.assert_allclose(edges, box, atol=1.0 + scale / 2)
            middle = tuple(((box[:2] + box[2:]) / 2).astype(int))
            np.testing.assert_allclose(image[middle], BRIGHT, atol=1e-3)


def test_mirror_images_mirror_within_the_extent():
    box = (8, 4, 30, 22)
    images = np.stack([picture(32, 30, box)] * 2)
    extents, flags = np.array([[32, 30]] * 2), np.array([True, False])
    turned = np.asarray(augmentation.mirror(images, extents, flags))
    boxes = augmentation.mirror_boxes(jnp.array([[box]] * 2, jnp.float32), extents, flags)
    np.testing.assert_array_equal(boxes[:, 0], [[8, 8, 30, 26], box])  # 30 px wide, not 48
    np.testing.assert_array_equal(turned[0], picture(32, 30, (8, 8, 30, 26)))
    np.testing.assert_array_equal(turned[1], images[1])


def test_an_image_that_keeps_size_and_place_is_itself():
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    extents = np.array([[SIDE, SIDE], [30, 40]])
    still = Placement(jnp.ones(2), jnp.zeros((2, 2)))
    placed, inside = augmentation.place(images, extents, still)
    np.testing.assert_array_equal(placed, images * np.asarray(inside)[..., None])
    assert inside[0].all() and int(inside[1].sum()) == 30 * 40


def test_boxes_that_are_mostly_cut_off_lose_their_label():
    boxes = jnp.array([[[0.0, 0, 20, 20], [20, 20, 40, 40]]])
    place = Placement(jnp.ones(1), jnp.array([[-16.0, 0.0]]))  # 16 rows are cut off above
    labels = jnp.array([[3, 4]])
    for least, kept in ((0.25, [[-1, 4]]), (0.15, [[3, 4]])):
        moved, left = augmentation.place_boxes(
            boxes, labels, place, image_size=SIDE, min_visible=least
        )
        np.testing.assert_array_equal(moved, [[[0, 0, 4, 20], [4, 20, 24, 40]]])
        np.testing.assert_array_equal(left, kept)


def test_a_placement_depends_on_key_position_and_extent_alone():
    extents = np.array([[48, 30], [20, 48], [48, 48]])
    key = jax.random.key(3)
    whole = augmentation.draw_placement(key, extents, image_size=SIDE, scales=(0.5, 2.0))
    part = augmentation.draw_placement(key, extents[:2], image_size=SIDE, scales=(0.5, 2.0))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[:2], b)
    room = SIDE - extents * np.asarray(whole.scale)[:, None]
    share = np.asarray(whole.offset) / room
    assert (share >= 0).all() and (share <= 1).all() and len(set(np.asarray(whole.scale))) == 3


def test_scenes_come_with_boxes_in_px(tmp_path, monkeypatch, config):
    monkeypatch.setattr(scenes.Scenes, "split_sizes", {"train": 6, "validation": 4})
    config.data.data_dir = str(tmp_path)
    config.probe.update({"image_size": 64, "train_images": 0, "eval_images": 3})
    data = load(config)
    assert len(data.train) == 6 and len(data.test) == 3 and len(data.test.class_names) == 8
    batch = data.train.read(range(4))
    assert batch.images.shape == (4, 64, 64, 3) and (batch.extents.max(1) == 64).all()
    boxes, labels, ignored = batch.truth
    there = labels >= 0
    assert there.any(1).all() and (~there).any() and not boxes[~there].any() and not ignored.any()
    limits = np.tile(batch.extents, 2)[:, None] + 1e-3
    assert (boxes <= limits).all() and (boxes >= 0).all()
    assert (boxes[there][:, 2:] - boxes[there][:, :2] > 3).all()
    assert load(config) is data
    config.probe.eval_images = 5
    with pytest.raises(UserError, match="probe.eval_images is 5, the data set has 4 images"):
        load(config)


def test_a_data_set_without_boxes_is_told(coco, tmp_path):  # noqa: F811
    from mcl_jax.data.prepare.folder import prepare_folder

    for name in ("cat", "dog"):
        os.makedirs(tmp_path / "pets" / name)
        (tmp_path / "pets" / name / "0.jpg").write_bytes(jpeg(0))
    arguments = {"name": "pets", "data_dir": coco["data_dir"], "holdout_percent": 0}
    prepare_folder(folder=str(tmp_path / "pets"), **arguments)
    with pytest.raises(UserError, match="has no boxes: no feature 'objects'"):
        open_boxes("tfds:pets", "train", coco["data_dir"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": "folder:/x"}, "unknown data set with boxes 'folder:/x'"),
        ({"train_json": "{photos}", "train_folder": ""}, "the train set's folder of images is miss"),
        ({"train_json": "{photos}", "train_folder": "/nowhere"}, "'/nowhere' does not exist"),
        ({"train_json": "/no.json", "train_folder": "/"}, "'/no.json' does not exist"),
        ({"train_json": "{photos}", "train_folder": "{empty}"}, "lacks 0.png, the first image of"),
        ({"train_json": "{photos}", "train_folder": "{here}"}, "the test set's annotation file is"),
        (
            {f"{side}_{kind}": value for side, own in (("train", "{photos}"), ("test", "{other}"))
             for kind, value in (("json", own), ("folder", "{here}"))},
            "the classes differ: cat, dog in training, cow in the test",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_told(changes, message, photos, config):
    here = photos.parent
    (here / "empty").mkdir()
    (here / "other.json").write_text(
        photos.read_text().replace('"id": 2, "name": "cat"', '"id": 2, "name": "cow"')
        .replace('{"id": 9, "name": "dog"}, ', "")
    )  # fmt: skip
    paths = {"photos": photos, "here": here, "empty": here / "empty", "other": here / "other.json"}
    own = {key: str(value).format(**paths) for key, value in changes.items()}
    probe = dict(config.probe) | own
    choose(probe, [])
    config.probe.update(probe)
    with pytest.raises(UserError, match=message):
        load(config)


def test_values_of_a_command_line_have_the_sections_types(config):
    probe = config.probe.to_dict()
    choose(probe, ["steps=7", "level_bounds=16,32", "base_lr=1", "levels='P3','P4','P5'"])
    assert probe["steps"] == 7 and probe["base_lr"] == 1.0 and probe["train_images"] == 256
    assert probe["level_bounds"] == (16.0, 32.0) and probe["levels"] == ("P3", "P4", "P5")
    for wrong in ("step=7", "steps", "steps=1.5", "steps=many", "area_bounds=a", "levels=3"):
        with pytest.raises(UserError, match=f"--set {wrong}: "):
            choose(probe, [wrong])
    for wrong, message in (
        ("steps=0", "probe.steps is 0; it must be a whole number"),
        ("level_bounds=16,32,64", "probe.level_bounds must be 2 numbers, one between each two"),
    ):
        with pytest.raises(UserError, match=message):
            choose(dict(probe), [wrong])
    choose(probe | {"dataset": "tfds:voc/2007"}, [])
    assert probe["train_images"] == 256  # a copy was changed
