"""Where a run's checkpoints are: WORKDIR/checkpoints/STEP, each with `state` and `meta`.

A finished checkpoint got its name by a rename; in a bucket, where that would copy every byte, orbax
writes under the final name and a commit object last.
"""

import json
import os
import sys
from collections.abc import Iterable

from mcl_jax import paths
from mcl_jax.errors import UserError
from mcl_jax.runtime import integrity, storage
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.rules import whole_number

FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
UNFINISHED = "*.orbax-checkpoint-tmp*"  # how orbax names what it has not finished
COMMITTED = "commit_success.txt"  # orbax's last object, where it does not rename
ITEMS = ("state", "meta")


def find(path: str | os.PathLike) -> tuple[Place, int]:
    """(checkpoints folder, step) of a workdir, its `checkpoints` folder or one step's folder.

    Raises:
      UserError: if there is no finished checkpoint, saying what was looked for.
    """
    folder, steps = _finished(path)
    return folder, steps[-1]


def newest(path: str | os.PathLike, count: int) -> list[Place]:
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


def unfinished(folder: Place) -> list[Place]:
    """What saves in this checkpoints folder left behind, or are about to finish."""
    mark = UNFINISHED.strip("*")
    names = storage.names(folder)
    if storage.renames(folder):
        return [folder / name for name in names if mark in name]
    steps = [folder / name for name in names if whole_number(name) is not None]
    return [step for step in steps if COMMITTED not in storage.names(step)]


def clean(folder: Place) -> None:
    """Removes what killed saves left behind; what was set aside stays."""
    aside = storage.names(folder.parent / DAMAGED)
    for leftover in unfinished(folder):
        if leftover.name not in aside:
            storage.remove(leftover)


def newest_intact(folder: Place, steps: Iterable[int]) -> tuple[int, set[int]]:
    """The newest checkpoint that is not damaged; damaged ones that are newer are set aside.

    Returns:
      (its step, steps of damaged ones that could not be moved); -1: there is no checkpoint at all.

    Raises:
      UserError: there are only damaged ones.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        reason = integrity.damage(folder / str(step))
        if reason is None:
            places = {newer: set_aside(folder, newer, why) for newer, why in damaged.items()}
            for newer, place in places.items():
                print(
                    f"the checkpoint of step {newer} is damaged ({damaged[newer]}): set aside in "
                    f"{place}, going on from the one before, step {step}",
                    file=sys.stderr,
                )
            return step, {newer for newer, place in places.items() if place.parent == folder}
        damaged[step] = reason
    if damaged:  # left where they are: the next start must not take the folder for a new one
        reasons = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        raise UserError(
            f"no checkpoint in {folder} is intact ({reasons}). Put an intact copy back, or "
            "start anew with another --workdir"
        )
    return -1, set()


def set_aside(folder: Place, step: int, reason: str) -> Place:
    """Takes a damaged checkpoint out of the run's sight; returns where it can be looked at.

    It is moved to WORKDIR/damaged_checkpoints. Where that would copy it, a note there says where it
    is, and it is not a finished checkpoint any more; the run replaces it when it comes by again.
    """
    aside = folder.parent / DAMAGED
    storage.make_folder(aside)
    place = aside / str(step)
    while storage.exists(place):
        place = place.with_name(f"{place.name}-again")
    if storage.renames(folder):
        (folder / str(step)).rename(place)
        return place
    note = {"checkpoint": str(folder / str(step)), "reason": reason}
    storage.write(aside / str(step), json.dumps(note, indent=1) + "\n")
    storage.remove(folder / str(step) / COMMITTED)
    return folder / str(step)


def _finished(path: str | os.PathLike) -> tuple[Place, list[int]]:
    """(checkpoints folder, steps in ascending order)."""
    hint = "give a --workdir of mcl-jax pretrain"
    path = storage.absolute(paths.existing_folder(path, "checkpoint", hint))
    storage.reachable(path)
    inside = storage.names(path)
    if not inside and not storage.exists(path):  # of a bucket
        raise UserError(f"{path} does not exist; {hint}")
    if (own := whole_number(path.name)) is not None and "state" in inside:
        return path.parent, [own]
    folder = path / FOLDER if FOLDER in inside else path
    numbers = map(whole_number, storage.names(folder))
    steps = [step for step in numbers if step is not None and _is_finished(folder / str(step))]
    if not steps:
        raise UserError(
            f"{path} is not a checkpoint: no {FOLDER}/STEP/state in it; "
            "give a --workdir of mcl-jax pretrain or one of its checkpoints"
        )
    return folder, sorted(steps)


def _is_finished(step: Place) -> bool:
    inside = storage.names(step)
    return "state" in inside and (storage.renames(step) or COMMITTED in inside)
