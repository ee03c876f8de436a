"""The command line of scripts/finetune_detectron2.py."""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mcl_jax.errors import UserError

SUPERVISED = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"  # RGB, stride in the 3x3
CONTROLS = {"supervised": SUPERVISED, "random": ""}


@dataclass(frozen=True)
class Task:
    """What a run is asked to do.

    Attributes:
      config: the YAML.
      weights: the file to start from; None for a control.
      control: one of CONTROLS; None where there are weights.
      num_gpus: processes, one a GPU.
      resume: go on from OUTPUT_DIR, where it has a checkpoint.
      eval_only: measure, do not train.
      check: look at everything and stop.
      subsets: folder of mcl-jax coco-subset's files; None: COCO's annotations.
      options: KEY VALUE KEY VALUE ...
    """

    config: Path
    weights: Path | None
    control: str | None
    num_gpus: int
    resume: bool
    eval_only: bool
    check: bool
    subsets: Path | None
    options: tuple[str, ...]

    @property
    def source(self) -> str:
        """MODEL.WEIGHTS."""
        return str(self.weights) if self.control is None else CONTROLS[self.control]


class Parser(argparse.ArgumentParser):
    """Wrong arguments are a UserError: one line, as everywhere in the project."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(description: str, arguments: Sequence[str] | None = None) -> Task:
    """The task of a command line.

    Raises:
      UserError: a flag is unknown or missing, or its value is wrong.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=_path, help="YAML, e.g. one of configs/detectron2")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=_path, help="an export (.pkl), or model_final.pth")
    source.add_argument("--control", choices=tuple(CONTROLS), help="the run to compare with")
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument(
        "--check", action="store_true", help="look at configuration, weights and data, and stop"
    )
    parser.add_argument(
        "--subsets", type=_path, help="folder of mcl-jax coco-subset, for the low-data rows"
    )
    parser.add_argument("options", nargs="*", help="KEY VALUE ... of Detectron2")
    values = vars(parser.parse_intermixed_args(arguments))
    task = Task(**{**values, "options": tuple(values["options"])})
    if task.num_gpus < 1:
        raise UserError(f"--num-gpus {task.num_gpus} must be at least 1; on a CPU MODEL.DEVICE cpu")
    if "MODEL.WEIGHTS" in task.options[::2]:
        raise UserError("MODEL.WEIGHTS among the options: give the file with --weights")
    if task.weights is not None and task.weights.is_dir():
        inside = sorted(
            path.name for path in task.weights.iterdir() if path.suffix in (".pkl", ".pth")
        )
        advice = (
            f"give a file in it: {', '.join(inside)}" if inside else "without a .pkl or .pth in it"
        )
        raise UserError(f"--weights {task.weights} is a folder, {advice}")
    return task


def _path(text: str) -> Path:
    return Path(text).expanduser()
