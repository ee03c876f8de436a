"""Which commands there are."""

import difflib
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from mcl_jax.errors import UserError


class Command(NamedTuple):
    """A command of `mcl-jax`.

    Attributes:
      name: one word, or two for a command of a group.
      summary: for the list of commands.
    """

    name: str
    summary: str

    def module(self) -> ModuleType:
        """Where it is written."""
        return import_module(f"mcl_jax.commands.{self.name.replace(' ', '_').replace('-', '_')}")


COMMANDS = (
    Command("pretrain", "pre-train; the same command resumes"),
    Command("convert", "weights to Detectron2, MMDetection, torchvision, timm ... and back"),
    Command("prepare", "data sets in the form that training reads"),
    Command("knn", "kNN accuracy and scale consistency of a checkpoint"),
    Command("linear", "linear evaluation of a checkpoint"),
    Command("svm", "linear SVMs on a checkpoint's frozen maps"),
    Command("probe", "AP of a small detector on a checkpoint"),
    Command("visualize", "what a checkpoint sees, as pictures"),
    Command("summary", "what runs learned; several runs side by side"),
    Command("plan", "what a run will need on a pod, without the pod"),
    Command("study", "methods compared at one budget"),
    Command("bench step", "speed, FLOPs and memory of the train step"),
    Command("bench start", "from the command to the first step, phase by phase"),
    Command("bench data", "speed of decoding and of the input pipeline"),
    Command("bench probe", "speed of the detection probe against its network"),
    Command("bench gpu", "everything that can be measured on this accelerator"),
    Command("instance-sizes", "sizes of objects before and after the montage"),
    Command("coco-subset", "COCO's low-data training sets"),
    Command("torture", "break runs on purpose and count what survives"),
    Command("completion", "completion of these commands for bash or zsh"),
)
_BY_NAME = {command.name: command for command in COMMANDS}


def find(arguments: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that a command line begins with, and the arguments behind it.

    Raises:
      UserError: for an unknown one, with the nearest, and for a group without a command of it.
    """
    for words in (2, 1):
        if command := _BY_NAME.get(" ".join(arguments[:words])):
            return command, list(arguments[words:])
    first = arguments[0]
    members = [name.partition(" ")[2] for name in _BY_NAME if name.startswith(f"{first} ")]
    command_words = " ".join(arguments[:2]) if members else first
    near = difflib.get_close_matches(command_words, _BY_NAME, n=1, cutoff=0.5)
    if members:
        raise UserError(f"mcl-jax {first} is one of {', '.join(members)}; say which")
    if not near:
        raise UserError(f"no command {first!r}; mcl-jax --help lists the commands there are")
    raise UserError(f"no command {first!r}; did you mean {near[0]!r}?")
