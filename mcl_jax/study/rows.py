"""The rows of a comparison: which runs there are, and what each is configured as.

A *row* is a method or variant, a *run* is a row with a seed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ml_collections import ConfigDict

from mcl_jax import program
from mcl_jax.errors import UserError
from mcl_jax.settings import door

# Keys that no number depends on, and keys that are younger than finished rows, with the value at
# which a run is what it was before there was such a key.
IGNORED = {
    "probe": ("cache_gb", "checkpoint_steps"),
    "data": ("data_dir", "workers", "threads"),
    "numerics": ("remat",),
}
NEUTRAL = {
    "probe": {
        "dataset": "scenes",
        "train_split": "train",
        "test_split": "validation",
        **dict.fromkeys(("train_json", "train_folder", "test_json", "test_folder"), ""),
        "scale_jitter": [1.0, 1.0],
        "min_visible": 0.25,
    },
    "data": {"group_size": 0},
    "numerics": {"bn_devices": 0},
    "loss": {"negatives": "micro_batch"},
    "optimizer": {"micro_batches": 1},
}
# Where files lie differs between machines: their last names count alone.
PATHS = {
    "data": ("dataset",),
    "probe": ("train_json", "train_folder", "test_json", "test_folder"),
}


def runs(config: ConfigDict, rows: list[str]) -> Iterator[tuple[str, int]]:
    """(row, seed) of a study, seed by seed, so that every row has one result first.

    Main rows are repeated with `study.seeds` seeds, the others run once.

    Args:
      config: with a section `study`.
      rows: names; empty: all.

    Raises:
      UserError: for a name that the study lacks.
    """
    names = list(config.study.rows)
    for name in names:  # all of them before the first hours of work
        if name not in config.study.differs:
            raise UserError(f"row {name!r} of study.rows has no entry in study.differs")
        config_of_run(config, name, seed=0)
    for name in rows:
        if name not in names:
            raise UserError(f"row {name!r} is not in the study: {', '.join(names)}")
    for seed in range(config.study.seeds):
        for name in names:
            repeated = seed == 0 or name in config.study.main_rows
            if repeated and (name in rows or not rows):
                yield name, seed


def config_of_run(config: ConfigDict, row: str, seed: int) -> dict[str, Any]:
    """The pre-training configuration of one run as plain nested dicts."""
    copy = config.copy_and_resolve_references().unlock()
    differs = copy.study.differs[row]
    del copy.study
    try:
        copy.update(differs)
        copy.seed = seed
        door.check(copy)
    except (TypeError, UserError) as error:  # ml_collections does not cast every type
        raise UserError(f"study.differs.{row}: {error}") from error
    return program.plain_config(copy)


def fingerprint(plain: Mapping[str, Any]) -> str:
    """Of everything in a run's configuration that its numbers depend on."""
    sections = {name: section for name, section in plain.items() if name not in ("log", "export")}
    for section in {*IGNORED, *NEUTRAL, *PATHS}:
        ignored, neutral = IGNORED.get(section, ()), NEUTRAL.get(section, {}).items()
        values = {
            name: _last_name(value) if name in PATHS.get(section, ()) else value
            for name, value in plain[section].items()
        }
        sections[section] = {
            name: value
            for name, value in values.items()
            if name not in ignored and (name, value) not in neutral
        }
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]


def _last_name(path: str) -> str:
    """'folder:/some/where/photos' -> 'folder:photos'; what is no path stays as it is."""
    kind, colon, rest = path.rpartition("folder:")
    return f"{kind}{colon}{PurePath(rest).name}"
