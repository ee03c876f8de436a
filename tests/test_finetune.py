"""Fine-tuning of torchvision's detectors: images, budgets, scores and pictures.

Shapes: see mcl_jax/finetune/images.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch_or_skip import module_on_torch, torch

from mcl_jax.data import coco_json
from mcl_jax.errors import UserError
from mcl_jax.finetune import job, precision
from mcl_jax.finetune.settings import FinetuneSettings

images = module_on_torch("mcl_jax.finetune.images")
pictures = module_on_torch("mcl_jax.finetune.pictures")


def content(count=6):
    """`count` images of 40 x 30 px with a cat each, every second one with a dog, too."""
    made = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(count)]
    boxes = [(i, 7, [5, 10, 20, 10]) for i in range(count)]
    boxes += [(i, 3, [0, 0, 10, 30]) for i in range(0, count, 2)]
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": box}
        for k, (i, c, box) in enumerate(boxes)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": made, "annotations": annotations, "categories": categories}


@pytest.fixture
def data(tmp_path):
    made = content()
    for i, image in enumerate(made["images"]):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["file_name"])
    (tmp_path / "instances.json").write_text(json.dumps(made))
    return images.read(tmp_path / "instances.json", tmp_path)


def test_label_budgets_are_nested(data):
    def ids(labels, seed):
        return [x.id for x in images.training_images(data.instances, labels, seed)]

    assert ids(3, None) == [0, 1, 2]
    assert ids(None, None) == list(range(6))
    assert ids(2, 5) == ids(4, 5)[:2] == ids(None, 5)[:2]
    assert sorted(ids(None, 5)) == list(range(6)) and ids(6, 5) != ids(6, 6)
    with pytest.raises(UserError, match="--labels 7: only 6 training images have boxes"):
        ids(7, None)


def test_crowds_and_images_without_boxes_are_not_learned_from():
    made = content(4)
    made["annotations"] = [x | {"iscrowd": int(x["image_id"] == 1)} for x in made["annotations"]]
    made["annotations"] = [x for x in made["annotations"] if x["image_id"] != 3]
    instances = coco_json.parse(made, "made.json")
    assert [x.id for x in images.training_images(instances, None, None)] == [0, 2]


def test_images_and_boxes_arrive_as_torchvision_takes_them(data):
    image = data.instances.images[0]
    pixels = images.load(data.folder, image)
    assert pixels.shape == (3, 30, 40) and pixels.dtype == torch.float32 and pixels.max() <= 1
    target = images.target(data.instances, image, masks=False)
    assert target["boxes"].tolist() == [[5, 10, 25, 20], [0, 0, 10, 30]]
    assert target["labels"].tolist() == [2, 1]  # by the order of ids: dog 3, cat 7
    flipped, changed = images.mirrored(pixels, target)
    assert changed["boxes"].tolist() == [[15, 10, 35, 20], [30, 0, 40, 30]]
    np.testing.assert_array_equal(flipped, pixels.numpy()[:, :, ::-1])
    twice, back = images.mirrored(flipped, changed)
    assert torch.equal(twice, pixels) and torch.equal(back["boxes"], target["boxes"])


def test_masks_come_from_polygons_and_run_lengths_and_are_mirrored():
    made = content(1)
    polygon = [[5, 10, 25, 10, 25, 20, 5, 20]]
    counts = [0, 300, 900]  # by columns: all of the first ten
    for entry, shape in zip(
        made["annotations"], (polygon, {"counts": counts, "size": [30, 40]}), strict=True
    ):
        entry["segmentation"] = shape
    instances = coco_json.parse(made, "made.json")
    image = instances.images[0]
    images.demand_segmentations(images.Annotated(Path("x"), Path("y"), instances), [image])
    target = images.target(instances, image, masks=True)
    for mask, (left, top, right, bottom) in zip(
        target["masks"].numpy(), target["boxes"].int().tolist(), strict=True
    ):
        expected = np.zeros((30, 40), np.uint8)
        expected[top:bottom, left:right] = 1
        np.testing.assert_array_equal(mask, expected)
    _, changed = images.mirrored(torch.zeros(3, 30, 40), target)
    np.testing.assert_array_equal(changed["masks"], target["masks"].numpy()[:, :, ::-1])


def test_boxes_without_segmentations_are_refused_for_masks(data):
    with pytest.raises(UserError, match="9 of 9 boxes have no segmentation.*fasterrcnn"):
        images.demand_segmentations(data, list(data.instances.images))


def test_the_stream_is_the_same_from_any_position_and_with_workers(data):
    own = FinetuneSettings(steps=3, batch_size=4)
    stream = images.Stream(data, list(data.instances.images), own)
    whole = list(images.batches(stream, 4, workers=0))
    rest = list(images.batches(stream, 4, workers=1, start=4))
    assert [len(batch) for batch in whole] == [4, 4, 4] and len(rest) == 2
    for ours, theirs in zip(whole[1:], rest, strict=True):
        for (a, s), (b, t) in zip(ours, theirs, strict=True):
            assert torch.equal(a, b) and torch.equal(s["boxes"], t["boxes"])


def test_images_that_are_damaged_missing_or_of_another_size_are_named(data, tmp_path):
    first, second, third = data.instances.images[:3]
    (tmp_path / first.file_name).write_bytes(b"no image")
    with pytest.raises(UserError, match="0.png cannot be read"):
        images.load(tmp_path, first)
    Image.new("RGB", (41, 30)).save(tmp_path / second.file_name)
    with pytest.raises(UserError, match=r"\(30, 41\), its annotation file says \(30, 40\)"):
        images.load(tmp_path, second)
    stream = images.Stream(data, [first], FinetuneSettings(steps=1, batch_size=1))
    assert isinstance(next(iter(images.batches(stream, 1, workers=1))), UserError)
    (tmp_path / third.file_name).unlink()
    with pytest.raises(UserError, match="lacks 1 of 6 images.*first 2.png"):
        images.read(data.json, tmp_path)
    with pytest.raises(UserError, match="image folder .*none' does not exist"):
        images.read(data.json, tmp_path / "none")


def perfect(instances):
    return [
        {
            "image_id": image.id,
            "category_id": instances.category_ids[x.label],
            "bbox": list(x.box),
            "score": 0.9,
        }
        for image in instances.images
        for x in instances.of(image)
    ]


def scores(instances, detections, images=None):
    chosen = instances.images if images is None else images
    return precision.average_precision(
        instances,
        chosen,
        detections=detections,
        kind="bbox",
        area_bounds=(12.0, 16.0),
        max_detections=100,
    )


def test_perfect_empty_and_shifted_detections(data):
    instances = data.instances
    found = scores(instances, perfect(instances))
    ious = {f"ap/iou{x}" for x in range(50, 100, 5)}
    # none is small: cats have 200 px^2, dogs 300, and small ends at 144
    keys = {"ap", "ap50", "ap75", "ap_medium", "ap_large", "ap/dog", "ap/cat", *ious}
    assert found == {key: pytest.approx(1) for key in keys}
    nothing = scores(instances, [])
    assert nothing == dict.fromkeys(keys, 0.0)
    # 20 x 10 moved by 3 px: the overlap is 17 / 23 = 0.739
    moved = [x | {"bbox": [x["bbox"][0] + 3, *x["bbox"][1:]]} for x in perfect(instances)]
    cats = [x for x in moved if x["category_id"] == 7]
    found = scores(instances, cats)
    assert (found["ap/dog"], found["ap/cat"]) == (0.0, pytest.approx(0.5))
    assert found["ap/iou70"] == pytest.approx(0.5) and found["ap/iou75"] == 0 == found["ap75"]
    half = scores(instances, perfect(instances), instances.images[:2])
    assert half["ap"] == pytest.approx(1)  # of the tested images alone
    table = job.as_text(half, instances.class_names).splitlines()
    assert table[1].split()[0] == "100.00" and table[2] == "dog 100.00, cat 100.00"


def test_masks_are_judged_by_their_own_overlap():
    """A crowd without a mask is left out; a detection of it is wrong then."""
    mask = pytest.importorskip("pycocotools.mask")
    made = content(1)
    made["annotations"][0]["segmentation"] = [[5, 10, 25, 10, 25, 20, 5, 20]]
    made["annotations"][1]["iscrowd"] = 1
    instances = coco_json.parse(made, "made.json")

    def found(height):
        plane = np.zeros((30, 40), np.uint8, order="F")
        plane[10 : 10 + height, 5:25] = 1
        detection = {"image_id": 0, "category_id": 7, "score": 0.9, "bbox": [5, 10, 20, 10]}
        detection["segmentation"] = mask.encode(plane)
        arguments = (instances, instances.images, [detection], "segm", (12.0, 16.0), 100)
        return precision.average_precision(*arguments)

    assert found(10)["ap/cat"] == pytest.approx(1)
    assert found(8)["ap/cat"] == pytest.approx(0.7)  # .50 to .80
    assert "ap/dog" not in found(10)


def test_the_sheet_shows_truth_and_detections(data, tmp_path):
    def colors(least_score):
        """Of the tiles, without the legend."""
        path = tmp_path / "sheet.png"
        pictures.sheet(path, data, data.instances.images[:5], perfect(data.instances), least_score)
        drawn = Image.open(path)
        drawn = drawn.crop((0, 2 * pictures.TEXT + pictures.GAP, *drawn.size))
        return {color for _, color in drawn.getcolors(2**24)}

    of_classes = {pictures.color_of(i, 2) for i in (0, 1)}
    assert of_classes <= colors(0.5)
    bare = colors(0.95)
    assert pictures.WHITE in bare and not of_classes & bare
