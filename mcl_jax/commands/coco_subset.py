"""Draws the low-data training sets of the paper (Table 4): 1, 2, 5 and 10 % of COCO's images.

mcl-jax coco-subset datasets/coco/annotations/instances_train2017.json --percent 1 2 5 10
"""

import argparse
import json
import random
from pathlib import Path

from mcl_jax import cli, paths
from mcl_jax.data import coco_json
from mcl_jax.errors import UserError
from mcl_jax.runtime import storage

COMPILES = False
PERCENTS = (1, 2, 5, 10)


def draw(image_ids: list[int], percent: float, seed: int) -> list[int]:
    """A sorted share of the images, at least one; smaller shares of a seed are part of larger ones.

    Depends on ids and seed alone, not on the order of the file. `random()` is what Python promises
    to keep the same in all versions, which it does not of `shuffle` and `sample`.
    """
    generator = random.Random(seed)
    order = sorted(
        (generator.random(), _rank(image_id)) for image_id in sorted(image_ids, key=_rank)
    )
    count = max(1, round(len(order) * percent / 100))
    return [image_id for _, image_id in sorted(rank for _, rank in order[:count])]


def _rank(image_id: int | str) -> tuple[bool, int | str]:
    """Numbers before texts: a file may have both."""
    return isinstance(image_id, str), image_id


def subset(content: dict, chosen: list[int]) -> dict:
    """The annotation file of these images; categories and everything else stay."""
    ids = set(chosen)
    return content | {
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }


def parser(program: str) -> argparse.ArgumentParser:
    parser = cli.Parser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path, help="COCO's instances_train2017.json")
    parser.add_argument(
        "--percent", type=float, nargs="+", default=PERCENTS, help="of the images (1 2 5 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--out", type=Path, help="folder (default: that of the annotations)")
    return parser


def main(options: argparse.Namespace) -> None:
    if outside := [p for p in options.percent if not 0 < p <= 100]:
        raise UserError(f"--percent {outside[0]:g} must be above 0 and at most 100")
    content = coco_json.read(options.annotations).content
    ids = [image["id"] for image in content["images"]]
    out = storage.locate(paths.output_folder(options.out or options.annotations.parent, "--out"))
    storage.make_folder(out)
    for percent in options.percent:
        chosen = draw(ids, percent, options.seed)
        part = subset(content, chosen)
        name = f"{options.annotations.stem}_{percent:.15g}percent"  # digits enough for any share
        storage.write_result(out / f"{name}.json", json.dumps(part))
        storage.write_result(out / f"{name}.txt", "\n".join(map(str, chosen)) + "\n")
        print(
            f"wrote {out / name}.json and .txt: {len(chosen)} of {len(ids)} images, "
            f"{len(part['annotations'])} annotations (seed {options.seed})"
        )
