"""Annotation files with holes: every kind is refused in one line, or left out and counted."""

import json
import logging

import pytest

from mcl_jax.data import coco_json
from mcl_jax.errors import UserError


def content(**changes):
    """Two images, two categories (the second id first), two boxes on the first image."""
    whole = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 5, "file_name": "b.jpg", "height": 40, "width": 50},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3.5, 4], "iscrowd": 1},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 30, 20]},
        ],
    }
    return whole | changes


def test_what_is_whole_is_read_as_it_is():
    instances = coco_json.parse(content(), "x.json")
    assert instances.class_names == ("cat", "dog") and instances.category_ids == (2, 9)
    assert [(i.id, i.file_name, i.height, i.width) for i in instances.images] == [
        (7, "a.jpg", 20, 30), (5, "b.jpg", 40, 50),
    ]  # fmt: skip
    first, second = instances.of(instances.images[0])
    assert first[:3] == (1, (1.0, 2.0, 3.5, 4.0), True)
    assert second[:3] == (0, (0.0, 0.0, 30.0, 20.0), False)  # no iscrowd: no crowd
    assert instances.of(instances.images[1]) == () and not instances.left_out
    assert instances.content == content() and second.entry is not first.entry


GOOD = content()["annotations"][0]


@pytest.mark.parametrize(
    "entry, kind",
    [
        (GOOD | {"image_id": 6}, "unknown image"),
        (GOOD | {"image_id": [7]}, "unknown image"),
        (GOOD | {"category_id": 3}, "unknown category"),
        ({k: v for k, v in GOOD.items() if k != "category_id"}, "unknown category"),
        ({k: v for k, v in GOOD.items() if k != "bbox"}, "four finite numbers"),
        (GOOD | {"bbox": [1, 2, 3]}, "four finite numbers"),
        (GOOD | {"bbox": [1, float("nan"), 3, 4]}, "four finite numbers"),
        (GOOD | {"bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
        (GOOD | {"bbox": [1, 2, 10**400, 4]}, "four finite numbers"),
        (GOOD | {"bbox": ["1", 2, 3, 4]}, "four finite numbers"),
        (GOOD | {"bbox": [1, 2, 0, 4]}, "width or height 0 or less"),
        (GOOD | {"bbox": [1, 2, 3, -4]}, "width or height 0 or less"),
        (GOOD | {"bbox": [31, 2, 3, 4]}, "outside its image"),
        ("text", "no object"),
    ],
)
def test_annotations_that_no_detector_can_use_are_left_out(entry, kind, caplog, tmp_path):
    path = tmp_path / "holes.json"
    path.write_text(json.dumps(content(annotations=[entry, GOOD, entry])))
    with caplog.at_level(logging.WARNING):
        instances = coco_json.read(path)
    assert [len(instances.of(image)) for image in instances.images] == [1, 0]
    assert instances.content["annotations"] == [GOOD]
    (message,) = (record.getMessage() for record in caplog.records)
    assert kind in message and "left out 2 x" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "entry, kind",
    [
        ({"id": 8, "file_name": "c.jpg", "height": 0, "width": 5}, "height and width"),
        ({"id": 8, "file_name": "c.jpg", "width": 5}, "height and width"),
        ({"id": 8, "file_name": "c.jpg", "height": float("nan"), "width": 5}, "height and width"),
        ({"id": 8, "file_name": "", "height": 5, "width": 5}, "without file name"),
        ({"file_name": "c.jpg", "height": 5, "width": 5}, "without id"),
        ({"id": 5, "file_name": "c.jpg", "height": 5, "width": 5}, "another one has"),
    ],
)
def test_images_without_place_or_size_are_left_out(entry, kind):
    whole = content()
    instances = coco_json.parse(content(images=[*whole["images"], entry]), "x.json")
    assert [image.file_name for image in instances.images] == ["a.jpg", "b.jpg"]
    assert instances.content["images"] == whole["images"]
    ((name, (count, _)),) = instances.left_out.items()
    assert kind in name and count == 1


def test_boxes_are_clipped_to_their_image():
    boxes = [[-2, 5, 6, 30], [25, 0.1, 5.0, 0.2]]
    entries = [GOOD | {"bbox": box} for box in boxes]
    instances = coco_json.parse(content(annotations=entries), "x.json")
    assert [a.box for a in instances.of(instances.images[0])] == [(0, 5, 4, 15), (25, 0.1, 5, 0.2)]


@pytest.mark.parametrize(
    "whole, message",
    [
        ([], "no lists 'images' and 'annotations' and 'categories'"),
        (content(categories={}), "no lists 'categories'"),
        (content(images=[]), "lists no images"),
        (content(categories=[]), "lists no categories"),
        (content(categories=[{"id": 1}]), "no integer id and name"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "of the name 'a'"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "of id 1"),
        (content(annotations=[]), "no usable box: it lists none"),
        (content(annotations=[GOOD | {"bbox": []}]), "no usable box: 1 x annotation without"),
        (
            {k: v for k, v in content(annotations=[{"caption": "a dog", "image_id": 7}]).items()
             if k != "categories"},
            "holds captions, not boxes",
        ),
        (content(annotations=[{"segments_info": [], "image_id": 7}]), "panoptic"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_meant_are_refused(whole, message):
    with pytest.raises(UserError, match=message) as refused:
        coco_json.parse(whole, "x.json")
    assert "x.json" in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_missing_and_broken_files_are_one_line(tmp_path):
    path = tmp_path / "x.json"
    for text, message in ((None, "does not exist"), (b"{", "not JSON"), (b"\xff\xfe", "UTF-16")):
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(UserError, match=message):
            coco_json.read(path)
    with pytest.raises(UserError, match="is a folder"):
        coco_json.read(tmp_path)
