"""What a fine-tuning run is asked to do, and what it writes about itself. Needs no torch.

AP here is in [0, 1]; tables show percent.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcl_jax import whole_file
from mcl_jax.errors import UserError
from mcl_jax.finetune.names import EXPORT
from mcl_jax.finetune.settings import FinetuneSettings
from mcl_jax.paths import on_disk, output_folder

RESULT, DETECTIONS, PICTURE = "result.json", "detections.json", "test_images.png"


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
      folder: for everything that is written.
      weights: file, or folder with one .pth file; None: random weights.
      train_json, train_images, test_json, test_images: annotation files and folders of images.
      settings: what decides the result.
      network: which of several in the file of weights; None: the only one.
      parts: which of the file's parts are taken, see `names.match`.
      device, threads, workers: see mcl_jax/finetune/machine.py.
      checkpoint_steps, log_steps: steps between two checkpoints, and two rows of the loss.
      pictures: test images on the sheet.
      least_score: of boxes that are drawn.
      check: stop before the first step.
    """

    folder: Path
    weights: Path | None
    train_json: Path
    train_images: Path
    test_json: Path
    test_images: Path
    settings: FinetuneSettings
    network: str | None = None
    parts: str | None = None
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    checkpoint_steps: int = 500
    log_steps: int = 20
    pictures: int = 12
    least_score: float = 0.3
    check: bool = False

    def __post_init__(self):
        """UserError for a number out of its range."""
        for name in ("checkpoint_steps", "log_steps", "pictures"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1")
        output_folder(on_disk(self.folder, "folder"), "folder")


def weights_file(path: Path) -> Path:
    """The .pth file that `--weights` means.

    Raises:
      UserError: there is none, or a folder holds several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"--weights {path} does not exist; {EXPORT} writes it")
    files = sorted(path.glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"--weights {path} holds {len(files)} .pth files; name one; {EXPORT}")
    return files[0]


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a run that was finished before with the same identity."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(result, dict) and result.get("identity") == identity
    return result if same else None


def write_json(path: Path, content: Any) -> None:
    """Writes all or nothing; CannotSave if the disk takes no more."""
    whole_file.write_result(path, json.dumps(content, indent=1, allow_nan=False))


def as_text(scores: Mapping[str, float], class_names: Sequence[str]) -> str:
    """AP as a table of one row, and by class, in percent."""
    heads = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    heads |= {"ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
    lines = ["".join(f"{head:>8}" for head in heads.values())]
    lines.append("".join(f"{_percent(scores.get(key)):>8}" for key in heads))
    by_class = (f"{name} {_percent(scores.get(f'ap/{name}'))}" for name in class_names)
    return "\n".join([*lines, ", ".join(by_class)])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
