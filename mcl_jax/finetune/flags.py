"""The command line of scripts/finetune_torchvision.py. Needs no torch."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mcl_jax.errors import UserError
from mcl_jax.finetune import settings
from mcl_jax.finetune.job import Job
from mcl_jax.paths import expanded

DATA = ("train_json", "train_images", "test_json", "test_images")
WORDS = {
    "network": "which network of a file that holds several; without it they are listed",
    "parts": "backbone, fpn, head, several with commas: what to take of the weights (all)",
    "check": "look at data and weights only",
    "device": "auto, cpu, cuda or cuda:N",
    "threads": "of torch on the CPU; without it OMP_NUM_THREADS, or all cores",
    "workers": "processes that read images; without it 0 on the CPU, up to 8 for a GPU",
    "checkpoint_steps": "steps between two checkpoints",
    "log_steps": "steps between two rows of the loss in result.json",
    "pictures": "test images in test_images.png",
    "least_score": "of boxes in test_images.png",
}


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a UserError: one line, as everywhere in the project."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(description: str, arguments: Sequence[str] | None = None) -> Job:
    """The job of a command line.

    Raises:
      UserError: a flag is unknown or missing, or a value is out of its range.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for all results; a stopped run goes on there")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights",
        type=Path,
        help="what the export wrote (folder or .pth), or anybody's file with torchvision's names",
    )
    source.add_argument("--random", action="store_true", help="random weights, to compare with")
    for name in DATA:
        words = "annotation file like COCO's" if "json" in name else "folder of its images"
        parser.add_argument(f"--{name}", type=Path, required=True, help=words)
    for field in dataclasses.fields(Job):
        if field.name in WORDS:
            _add(parser, field)
    settings.add_flags(parser.add_argument_group("settings, which decide the result"))
    options = vars(parser.parse_args(arguments))
    names = {field.name for field in dataclasses.fields(settings.FinetuneSettings)}
    finetune_settings = settings.FinetuneSettings(**{name: options[name] for name in names})
    rest = {name: x for name, x in options.items() if name not in names and name != "random"}
    return Job(**(rest | _expanded(rest)), settings=finetune_settings)


def _expanded(options: Mapping[str, Any]) -> dict[str, Path]:
    """The paths among the options; what reads them looks whether they are there."""
    names = [name for name in ("folder", "weights", *DATA) if options[name] is not None]
    return {name: Path(expanded(options[name], f"--{name}")) for name in names}


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    words, name = WORDS[field.name], f"--{field.name}"
    if field.type is bool:
        parser.add_argument(name, action="store_true", help=words)
        return
    kind = next(kind for kind in (int, float, str) if kind.__name__ in str(field.type))
    default = "" if field.default is None else f" ({field.default})"
    parser.add_argument(name, type=kind, default=field.default, help=words + default)
