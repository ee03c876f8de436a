"""Converts checkpoints: python -m convert --help."""

import argparse
from pathlib import Path
from typing import NoReturn

import jax

from mcl_jax import cli
from mcl_jax.configs import base
from mcl_jax.convert import export, imports, recognition, transform
from mcl_jax.convert.names.views import NETWORKS
from mcl_jax.convert.targets import authors
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError
from mcl_jax.runtime import checkpoint, checkpoint_folders, storage
from mcl_jax.settings import files

BASE = "configs/base.py"
OFFICIAL = "mcl-official"
ORIGINS = (OFFICIAL, *recognition.KINDS, "safetensors")
EXPORT_FLAGS = ("parts", "average", "divide_weights", "fold_norms")
EXAMPLES = """examples:
  python -m convert runs/mcl --to detectron2 --out exported
  python -m convert runs/mcl --to detectron2 --parts backbone,fpn --out exported
  python -m convert runs/mcl --to mmdet --out exported
  python -m convert runs/mcl --to torchvision --parts all --out exported
  python -m convert runs/byol --to torchvision --out exported
  python -m convert runs/byol --to timm --out exported
  python -m convert runs/mcl --to safetensors --out exported
  python -m convert runs/mcl --to mcl-official --out mcl.pth
  python -m convert runs/mcl --to detectron2 --average 5 --divide-weights 2 --out exported
  python -m convert epoch_100.pth --from mcl-official --out runs/continued
  python -m convert resnet50.pth --from torchvision --config configs/mcl.py --out runs/supervised
  python -m convert moco_v2.pth.tar --from torchvision --network encoder_q --out runs/moco"""


class Parser(argparse.ArgumentParser):
    """Wrong arguments in one line, as everywhere in the project."""

    def error(self, message: str) -> NoReturn:
        cli.fail(message)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m convert",
        description="Weights out of (and into) mcl_jax checkpoints.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="checkpoint, or the file to read with --from")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--to", choices=(*TARGETS, OFFICIAL))
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
        help="config file to go on with (--from only), as for scripts/pretrain.py: FILE or "
        f"FILE:ARGUMENT; without it {BASE} with the file's networks",
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="which network of a file that holds several (--from only); without it they are listed",
    )
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> list[str]:
    """Does what was asked; returns the lines to print."""
    options.source, options.out = storage.locate(options.source), storage.locate(options.out)
    if options.origin:
        return read(options)
    if options.config:
        raise UserError("--config belongs to --from; a checkpoint carries its own configuration")
    if options.network is not None:
        raise UserError("--network belongs to --from; a checkpoint is one run")
    state, meta, changes = prepared(options)
    if options.to == OFFICIAL:
        source = str(options.source)
        return [
            *authors.export(state, meta, out=options.out, source=source, changes=changes),
            *changes,
        ]
    written = export.export(
        TARGETS[options.to],
        state,
        meta=meta,
        source=str(options.source),
        out=options.out,
        parts=options.parts,
        folded=options.fold_norms,
        changes=changes,
        workdir=checkpoint_folders.find(options.source)[0].parent,
    )
    return [f"wrote {path}" for path in written]


def read(options: argparse.Namespace) -> list[str]:
    """`--from`: writes a checkpoint; returns the lines to print."""
    if given := [flag for flag in EXPORT_FLAGS if getattr(options, flag)]:
        flags = ", ".join("--" + flag.replace("_", "-") for flag in given)
        raise UserError(f"{flags}: for --to alone")
    if options.network is not None and options.origin not in recognition.KINDS:
        raise UserError(f"--network {options.network}: --from {options.origin} reads all networks")
    if not storage.renames(options.source):
        raise UserError(f"{options.source}: --from reads files of this machine; copy it here first")
    config = files.load(options.config) if options.config else base.get_config()
    adopt = not options.config
    if options.origin == OFFICIAL:
        state, meta, notes = authors.load(options.source, config, adopt)
    else:
        state, meta, notes = imports.load(
            options.source, options.origin, config, adopt=adopt, network=options.network
        )
    folder = checkpoint.write(options.out, state, dict(meta))
    flags = f"--config {options.config or BASE} --workdir {options.out}"
    overrides = [] if options.config else authors.overrides(meta["config"], base.get_config())
    resume = " ".join(["python scripts/pretrain.py", flags, *overrides])
    return [*notes, f"wrote {folder}; go on with", resume]


def prepared(options: argparse.Namespace) -> tuple[dict, dict, list[str]]:
    """(state, meta, changes in words) of the checkpoint, averaged and divided as asked."""
    if options.to == OFFICIAL and (options.parts or options.fold_norms):
        raise UserError("--parts and --fold-norms: mcl-official is always whole")
    state, meta = checkpoint.read(options.source)
    state = {name: state[name] for name in NETWORKS if name in state}  # no optimizer, no queues
    changes = []
    if options.average is not None:
        steps = checkpoint_folders.newest(options.source, options.average)
        state |= transform.average(checkpoint.read(path)[0] for path in steps)
        names = ", ".join(path.name for path in steps)
        changes.append(f"the mean of {len(steps)} checkpoints, of steps {names}")
    if options.divide_weights is not None:
        state |= transform.divide(state, meta["config"], options.divide_weights)
        changes.append(
            f"weights of backbone, FPN and head, norms excepted, divided by {options.divide_weights:g} "
            "(running means too, variances by its square)"
        )
    return state, meta, changes


def main(arguments: list[str] | None = None) -> None:
    """Prints what was done; a mistake of the user's is one line on stderr and exit code 2."""
    with cli.mistakes_in_one_line():
        print("\n".join(convert(parse(arguments))))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # conversion needs no accelerator and takes none
    main()
