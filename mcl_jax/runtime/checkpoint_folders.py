"""Where a run's checkpoints are: WORKDIR/checkpoints/STEP, each with `state` and `meta`."""

from pathlib import Path

from mcl_jax import paths
from mcl_jax.errors import UserError

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
UNFINISHED = "*.orbax-checkpoint-tmp*"  # how orbax names what it has not finished
ITEMS = ("state", "meta")


def find(path: str | Path) -> tuple[Path, int]:
    """(checkpoints folder, step) of a workdir, its `checkpoints` folder or one step's folder.

    Raises:
      UserError: if there is no finished checkpoint, saying what was looked for.
    """
    folder, steps = _finished(path)
    return folder, steps[-1]


def newest(path: str | Path, count: int) -> list[Path]:
    """Folders of the newest finished checkpoints of a run, the newest first.

    Args:
      path: a workdir or its `checkpoints` folder.
      count: how many.

    Raises:
      UserError: if there are fewer, or `path` is one step's folder.
    """
    folder, steps = _finished(path)
    if not 1 <= count <= len(steps):
        raise UserError(
            f"{path} holds {len(steps)} checkpoints, {count} were asked for; "
            "a run keeps log.keep_checkpoints of them"
        )
    return [folder / str(step) for step in steps[::-1][:count]]


def _finished(path: str | Path) -> tuple[Path, list[int]]:
    """(checkpoints folder, steps in ascending order)."""
    hint = "give a --workdir of mcl-jax pretrain"
    path = Path(paths.existing_folder(path, "checkpoint", hint)).absolute()
    if path.name.isdigit() and (path / "state").is_dir():
        return path.parent, [int(path.name)]
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    entries = folder.iterdir() if folder.is_dir() else ()
    steps = [int(e.name) for e in entries if e.name.isdigit() and (e / "state").is_dir()]
    if not steps:
        raise UserError(
            f"{path} is not a checkpoint: no {FOLDER}/STEP/state in it; "
            "give a --workdir of mcl-jax pretrain or one of its checkpoints"
        )
    return folder, sorted(steps)
