"""The flags of a conversion; needs neither JAX nor numpy, so that help is quick."""

import argparse
from pathlib import Path

from mcl_jax import cli
from mcl_jax.settings.keys import EXPORTS as NAMES

BASE = "base"
OFFICIAL = "mcl-official"
ORIGINS = (OFFICIAL, *NAMES)
EXAMPLES = """examples:
  mcl-jax convert runs/mcl --to detectron2 --out exported
  mcl-jax convert runs/mcl --to detectron2 --parts backbone,fpn --out exported
  mcl-jax convert runs/mcl --to mmdet --out exported
  mcl-jax convert runs/mcl --to torchvision --parts all --out exported
  mcl-jax convert runs/byol --to torchvision --out exported
  mcl-jax convert runs/byol --to timm --out exported
  mcl-jax convert runs/mcl --to safetensors --out exported
  mcl-jax convert runs/mcl --to mcl-official --out mcl.pth
  mcl-jax convert runs/mcl --to detectron2 --average 5 --divide-weights 2 --out exported
  mcl-jax convert epoch_100.pth --from mcl-official --out runs/continued
  mcl-jax convert resnet50.pth --from torchvision --config mcl --out runs/supervised
  mcl-jax convert moco_v2.pth.tar --from torchvision --network encoder_q --out runs/moco"""


def parser(program: str = "python -m convert") -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=program,
        description="Weights out of (and into) mcl_jax checkpoints.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="checkpoint, or the file to read with --from")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--to", choices=(*NAMES, OFFICIAL))
    direction.add_argument("--from", dest="origin", choices=ORIGINS)
    parser.add_argument("--out", type=Path, required=True, help="folder, or file for mcl-official")
    parser.add_argument(
        "--parts",
        help="backbone, fpn, head, several with commas, or all: what to export. Default: all, and "
        "for torchvision (whose names then are a classifier's) backbone",
    )
    parser.add_argument(
        "--average",
        type=int,
        metavar="N",
        help="export the mean of the N newest checkpoints",
    )
    parser.add_argument(
        "--divide-weights",
        type=float,
        metavar="D",
        help="divide all weights but those of norms, which makes fine-tuning faster (paper Table "
        "10d: 1.5 and 2)",
    )
    parser.add_argument(
        "--fold-norms",
        action="store_true",
        help="let FPN and head absorb their norms: for detectors without norms there",
    )
    parser.add_argument(
        "--config",
        help="config file to go on with (--from only), as for mcl-jax pretrain: FILE or "
        f"FILE:ARGUMENT; without it the configuration {BASE} with the file's networks",
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="which network of a file that holds several (--from only); without it they are listed",
    )
    return parser
