"""Tiny data sets in the layouts of COCO, LVIS, Pascal VOC and Cityscapes, for tests on Detectron2.

Images are [H, W, 3] uint8; boxes x, y, w, h in pixels.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 64, 96
COUNT = 4  # images a split
KEYPOINTS = 17
LVIS_CATEGORIES = 1203


def make(root: Path) -> None:
    """All of them under `root`, as DETECTRON2_DATASETS wants them."""
    coco(root / "coco")
    lvis(root)
    voc(root)
    cityscapes(root / "cityscapes")


def scene(seed: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """An image with one bright box in noise, and the box."""
    r = np.random.default_rng(seed)
    image = r.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    x, y, w, h = 8 * int(r.integers(1, 6)), 8 * int(r.integers(1, 3)), 32, 24
    image[y : y + h, x : x + w] = (200, 60, 40)
    return image, (x, y, w, h)


def split(folder: Path, first: int) -> tuple[list[dict], list[dict]]:
    """(images, annotations) of a split, its pictures written."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(first, first + COUNT):
        image, (x, y, w, h) = scene(i)
        name = f"{i:012}.jpg"
        Image.fromarray(image).save(folder / name)
        images.append({"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH})
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        keypoints = [v for k in range(KEYPOINTS) for v in (x + k % w + 1, y + k % h + 1, 2)]
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [corners],
                "keypoints": keypoints,
                "num_keypoints": KEYPOINTS,
            }
        )
    return images, annotations


def coco(root: Path) -> None:
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES, COCO_PERSON_KEYPOINT_NAMES

    (root / "annotations").mkdir(parents=True)
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    person = [things[0] | {"keypoints": list(COCO_PERSON_KEYPOINT_NAMES), "skeleton": []}]
    for name, first in (("train2017", 1), ("val2017", 101)):
        images, annotations = split(root / name, first)
        for kind, categories in (("instances", things), ("person_keypoints", person)):
            write(root / "annotations" / f"{kind}_{name}.json", images, annotations, categories)
    for percent in (1, 2, 5, 10):
        path = root / "annotations" / f"instances_train2017_{percent}percent.json"
        path.write_text((root / "annotations" / "instances_train2017.json").read_text())


def lvis(root: Path) -> None:
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as KNOWN

    (root / "lvis").mkdir(parents=True)
    categories = [c | {"image_count": 1, "instance_count": 1} for c in KNOWN]
    for name, part, first in (("train", "train2017", 1), ("val", "val2017", 101)):
        images, annotations = split(root / "coco" / part, first)
        for image in images:
            image |= {"coco_url": f"http://x/{part}/{image['file_name']}"}
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        write(root / "lvis" / f"lvis_v1_{name}.json", images, annotations, categories)


def write(path: Path, images: list, annotations: list, categories: list) -> None:
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def voc(root: Path) -> None:
    for year, names in ((2007, ("trainval", "test")), (2012, ("trainval",))):
        folder = root / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for k, name in enumerate(names):
            ids = [f"{year}_{i:06}" for i in range(100 * k, 100 * k + COUNT)]
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(ids) + "\n")
            for i, image_id in enumerate(ids):
                image, box = scene(100 * k + i)
                Image.fromarray(image).save(folder / "JPEGImages" / f"{image_id}.jpg")
                write_voc(folder / "Annotations" / f"{image_id}.xml", box)


def write_voc(path: Path, box: tuple[int, int, int, int]) -> None:
    x, y, w, h = box
    top = ElementTree.Element("annotation")
    size = ElementTree.SubElement(top, "size")
    for key, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    thing = ElementTree.SubElement(top, "object")
    for key, value in (("name", "person"), ("pose", "x"), ("truncated", 0), ("difficult", 0)):
        ElementTree.SubElement(thing, key).text = str(value)
    corners = ElementTree.SubElement(thing, "bndbox")
    for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
        ElementTree.SubElement(corners, key).text = str(value)
    ElementTree.ElementTree(top).write(path)


def cityscapes(root: Path) -> None:
    from cityscapesscripts.helpers.labels import name2label

    car, road = name2label["car"], name2label["road"]
    for name, first in (("train", 1), ("val", 101)):
        pictures, truth = root / "leftImg8bit" / name / "aachen", root / "gtFine" / name / "aachen"
        pictures.mkdir(parents=True)
        truth.mkdir(parents=True)
        for i in range(first, first + COUNT):
            image, (x, y, w, h) = scene(i)
            stem = f"aachen_{i:06}_000019"
            Image.fromarray(image).save(pictures / f"{stem}_leftImg8bit.png")
            inside = np.zeros((HEIGHT, WIDTH), bool)
            inside[y : y + h, x : x + w] = True
            for kind, background, thing, dtype in (
                ("instanceIds", road.id, car.id * 1000, np.uint16),
                ("labelIds", road.id, car.id, np.uint8),
                ("labelTrainIds", road.trainId, car.trainId, np.uint8),
            ):
                array = np.where(inside, thing, background).astype(dtype)
                Image.fromarray(array).save(truth / f"{stem}_gtFine_{kind}.png")
            polygon = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
            content = {
                "imgHeight": HEIGHT,
                "imgWidth": WIDTH,
                "objects": [{"label": "car", "polygon": polygon}],
            }
            (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
