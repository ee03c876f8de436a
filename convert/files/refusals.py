"""What to say of a file that is not read: what it is, and what would do.

Needs numpy alone, as all of convert/files: the fine-tuning scripts run without JAX.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

SHOWN_NAMES = 3
LONGEST = 300  # characters of a library's own words
TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# torch's words for a class or function that it does not load, of several versions.
REFUSED_NAME = re.compile(r"(?:GLOBAL|Unsupported class) ([A-Za-z_][\w.]*\w)")

# Programs that copy the arrays of a file and leave out the rest: of a network its state_dict().
# They quote with " alone, as the shell's quotes around them are '.
_WHOLE = 'keep(x.state_dict()) if hasattr(x, "state_dict") else '
_DICTS = "{k: y for k, v in x.items() if (y := keep(v)) is not None} if isinstance(x, dict) else "
KEEP_TENSORS = (
    f"import sys, torch; keep = lambda x: {_WHOLE}{_DICTS}"
    "x if isinstance(x, torch.Tensor) else None; "
    'torch.save(keep(torch.load(sys.argv[1], map_location="cpu", weights_only=False)), sys.argv[2])'
)
KEEP_ARRAYS = (
    f"import pickle, sys, numpy; keep = lambda x: {_WHOLE}{_DICTS}"
    'x.detach().cpu().numpy() if hasattr(x, "detach") else '
    "x if isinstance(x, numpy.ndarray) else None; "
    'pickle.dump(keep(pickle.load(open(sys.argv[1], "rb"), encoding="latin1")), '
    'open(sys.argv[2], "wb"))'
)
# How the files end that the two programs write.
SAVED = {KEEP_TENSORS: ".weights.pth", KEEP_ARRAYS: ".weights.pkl"}


def save_again(path: Path, program: str) -> str:
    """How to save the weights of a file alone, as a command to paste.

    Args:
      path: the file.
      program: KEEP_TENSORS or KEEP_ARRAYS.
    """
    out = path.with_name(path.name + SAVED[program])
    command = shlex.join(["python", "-c", program, str(path), str(out)])
    return (
        "if you trust where it comes from (this runs what the file names), save its weights alone "
        f"and give that file: {command}"
    )


def refused_names(error: Exception) -> list[str]:
    """Classes and functions that torch named in its refusal."""
    return sorted(set(REFUSED_NAME.findall(TERMINAL_CODE.sub("", str(error)))))


def one_line(error: Exception) -> str:
    """An exception's text in one line: its first paragraph without terminal codes.

    torch puts the cause behind a paragraph of advice; then it is the cause.
    """
    text = TERMINAL_CODE.sub("", str(error)).strip()
    text = text.rsplit("WeightsUnpickler error:", 1)[-1].strip()
    text = printable(text.splitlines()[0]) if text else ""
    if len(text) > LONGEST:  # zipfile's holds a piece of the file
        text = f"{text[:LONGEST]} ..."
    return text or type(error).__name__


def few(names: Iterable[str]) -> str:
    """The first names, and a sign that there are more."""
    names = list(names)
    text = ", ".join(printable(name) for name in names[:SHOWN_NAMES])
    return text + (", ..." if len(names) > SHOWN_NAMES else "")


def printable(text: str) -> str:
    """A text of a file on one line: what cannot be printed becomes a question mark."""
    return " ".join("".join(c if c.isprintable() else "?" for c in text).split())
