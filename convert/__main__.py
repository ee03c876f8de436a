"""Converts checkpoints: python -m convert --help."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any, NoReturn

import jax

from configs import base
from convert import authors, classifiers, detectron2, safetensors
from mcl_jax import checkpoint, cli
from mcl_jax.errors import UserError

BASE = "configs/base.py"
LIBRARIES = {library.name: library for library in (classifiers.TORCHVISION, classifiers.TIMM)}
TARGETS = ("detectron2", *LIBRARIES, "safetensors", "mcl-official")
EXAMPLES = """examples:
  python -m convert runs/mcl --to detectron2 --out exported
  python -m convert runs/mcl --to detectron2 --parts backbone,fpn --out exported
  python -m convert runs/byol --to torchvision --out exported
  python -m convert runs/byol --to timm --out exported
  python -m convert runs/mcl --to safetensors --out exported
  python -m convert runs/mcl --to mcl-official --out mcl.pth
  python -m convert epoch_100.pth --from mcl-official --out runs/continued"""


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
    direction.add_argument("--to", choices=TARGETS)
    direction.add_argument("--from", dest="origin", choices=("mcl-official",))
    parser.add_argument("--out", type=Path, required=True, help="folder, or file for mcl-official")
    parser.add_argument(
        "--parts",
        help="detectron2 only: backbone, fpn, head, several with commas, or all (default)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help=f"config file to go on with (--from only); without it {BASE} with the file's networks",
    )
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> list[str]:
    """Does what was asked; returns the lines to print."""
    if options.origin:
        config = load_config(options.config) if options.config else base.get_config()
        state, meta, notes = authors.load(options.source, config, adopt=not options.config)
        folder = authors.save(state, meta, options.out)
        flags = f"--config {options.config or BASE} --workdir {options.out}"
        overrides = [] if options.config else authors.overrides(meta["config"], base.get_config())
        resume = " ".join(["python scripts/pretrain.py", flags, *overrides])
        return [*notes, f"wrote {folder}; go on with", resume]
    if options.config:
        raise UserError("--config belongs to --from; a checkpoint carries its own configuration")
    if options.parts and options.to != "detectron2":
        raise UserError("--parts belongs to --to detectron2")
    state, meta = checkpoint.read(options.source)
    if options.to == "mcl-official":
        return authors.export(state, meta, options.out)
    arguments = (state, meta, str(options.source), options.out)
    if library := LIBRARIES.get(options.to):
        files = classifiers.export(*arguments, library)
    elif options.to == "safetensors":
        files = safetensors.export(*arguments)
    else:
        files = detectron2.export(*arguments, options.parts or "all")
    return [f"wrote {path}" for path in files]


def load_config(path: Path) -> Any:
    """get_config() of a Python file."""
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--config {path} is not a Python file; give one like configs/base.py")
    spec = importlib.util.spec_from_file_location("given_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except (AttributeError, SyntaxError, ImportError) as error:
        raise UserError(f"--config {path} cannot be loaded: {error}") from error


def main(arguments: list[str] | None = None) -> None:
    """Prints what was done; a mistake of the user's is one line on stderr and exit code 2."""
    try:
        print("\n".join(convert(parse(arguments))))
    except UserError as error:
        cli.fail(str(error))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # conversion needs no accelerator and takes none
    main()
