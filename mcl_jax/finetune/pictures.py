"""A sheet of test images with boxes: the truth in white, what was found in its class's color.

Boxes are [x, y, width, height] in px of the annotated image.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mcl_jax import whole_file
from mcl_jax.data import coco_json
from mcl_jax.finetune.images import Annotated, load_pixels

COLUMNS = 4
TILE = 320  # px, longest side of an image on the sheet
GAP = 8  # px
TEXT = 13  # px
WHITE, BLACK, PAPER = (255, 255, 255), (0, 0, 0), (32, 32, 32)


def sheet(
    path: Path,
    data: Annotated,
    images: Sequence[coco_json.Image],
    detections: Sequence[dict[str, Any]],
    least_score: float,
) -> None:
    """Writes the PNG.

    Args:
      path: of the PNG.
      data: the test file.
      images: which of its images.
      detections: in COCO's form for results.
      least_score: of the detections that are drawn.
    """
    rows = -(-len(images) // COLUMNS)
    columns = min(COLUMNS, len(images))
    legend = 2 * TEXT
    size = (columns * (TILE + GAP) + GAP, rows * (TILE + GAP) + GAP + legend)
    canvas = Image.new("RGB", size, PAPER)
    font = ImageFont.load_default(TEXT)
    _legend(ImageDraw.Draw(canvas), data.instances, least_score, font)
    for i, image in enumerate(images):
        tile = _tile(data, image, detections, least=least_score, font=font)
        left = GAP + (i % COLUMNS) * (TILE + GAP) + (TILE - tile.width) // 2
        top = legend + GAP + (i // COLUMNS) * (TILE + GAP) + (TILE - tile.height) // 2
        canvas.paste(tile, (left, top))
    whole_file.write_result(path, lambda file: canvas.save(file, "PNG"))


def color_of(index: int, count: int) -> tuple[int, int, int]:
    """Of a class: hues at equal distances."""
    return tuple(int(255 * x) for x in colorsys.hsv_to_rgb(index / count, 0.75, 1.0))


def _legend(draw: ImageDraw.ImageDraw, data: coco_json.Instances, least: float, font: Any) -> None:
    words = f"white: truth; colors: found, score at least {least:g}: "
    draw.text((GAP, GAP), words, WHITE, font=font)
    x = GAP + draw.textlength(words, font=font)
    for i, name in enumerate(data.class_names[:12]):
        draw.text((x, GAP), name, color_of(i, len(data.class_names)), font=font)
        x += draw.textlength(name + "  ", font=font)


def _tile(
    data: Annotated, image: coco_json.Image, detections: Sequence[dict], least: float, font: Any
) -> Image.Image:
    scale = TILE / max(image.width, image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = Image.fromarray(load_pixels(data.folder, image))
    tile = picture.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(tile)
    for x in data.instances.of(image):
        draw.rectangle(_corners(x.box, scale), outline=WHITE, width=1)
    ids, count = data.instances.category_ids, len(data.instances.class_names)
    boxes = [x for x in detections if x["image_id"] == image.id and x["score"] >= least]
    for x in sorted(boxes, key=lambda x: x["score"]):
        label = ids.index(x["category_id"])
        color, corners = color_of(label, count), _corners(x["bbox"], scale)
        draw.rectangle(corners, outline=color, width=2)
        words = f"{data.instances.class_names[label]} {x['score']:.2f}"
        box = draw.textbbox(corners[:2], words, font=font)
        draw.rectangle(box, fill=color)
        draw.text(corners[:2], words, BLACK, font=font)
    return tile


def _corners(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    x, y, width, height = (scale * v for v in box)
    return (x, y, x + width, y + height)
