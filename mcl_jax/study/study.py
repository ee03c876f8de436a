"""A comparison of methods at one budget: pre-train, score frozen features, probe detection.

A *row* is a method or variant, a *run* is a row with a seed. Every finished run is one JSON file,
written when all of it is done; what exists is never computed again, so a study goes on where it
stopped and several processes may share the work.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mcl_jax import program, sharding, train
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import probe
from mcl_jax.evaluate.detection.data import load
from mcl_jax.evaluate.monitor import KnnMonitor
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.pyramid import COARSEST
from mcl_jax.objectives.build import settings
from mcl_jax.runtime.health import TrainingStopped
from mcl_jax.state import TrainState

MODES = tuple(probe.MODES)
SIZES = (("S", "ap_small"), ("M", "ap_medium"), ("L", "ap_large"))
# Tables: title -> columns (heading, name among a run's scores).
TABLES = {
    "Nearest neighbors": (
        ("kNN", "knn"),
        *((f"1/{factor}", f"knn/shrink{factor}") for factor in (2, 4, 8)),
        ("P5", "knn/P5"),
        *((f"1/{32 >> level} P{level}", f"knn/P{level}") for level in (4, 3, 2)),
        *((f"same P{level}", f"retrieval/P{level}") for level in (4, 3, 2)),
    ),
    "Detection": tuple(
        column
        for mode, heading in zip(MODES, ("backbone", "+FPN", "tuned"), strict=True)
        for column in (
            (f"{heading} AP", f"{mode}/ap"),
            *((size, f"{mode}/{name}") for size, name in SIZES),
        )
    ),
}


# Keys that no number depends on, and keys that are younger than finished rows, with the value at
# which a run is what it was before there was such a key.
IGNORED = {
    "probe": ("cache_gb", "checkpoint_steps"),
    "data": ("data_dir", "workers", "threads"),
    "numerics": ("remat",),
    "loss": (),
    "optimizer": (),
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


class Stopped(Exception):
    """The process was asked to stop; the same command goes on later."""


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
    own = config.copy_and_resolve_references().unlock()
    differs = own.study.differs[row]
    del own.study
    _check_keys(differs, own, row)
    own.update(differs)
    own.seed = seed
    return program.plain_config(own)


def _check_keys(differs: ConfigDict, config: ConfigDict, path: str) -> None:
    """A misspelt key in a row would silently change nothing."""
    for name, value in differs.items():
        if name not in config:
            raise UserError(f"study.differs.{path}.{name} is no key of the configuration")
        if isinstance(value, ConfigDict):
            _check_keys(value, config[name], f"{path}.{name}")


def fingerprint(plain: Mapping[str, Any]) -> str:
    """Of everything in a run's configuration that its numbers depend on."""
    own = {name: section for name, section in plain.items() if name != "log"}
    for section, ignored in IGNORED.items():
        neutral = NEUTRAL.get(section, {}).items()
        own[section] = {
            name: value
            for name, value in plain[section].items()
            if name not in ignored and (name, value) not in neutral
        }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def complete(config: ConfigDict, row: str, seed: int, workdir: Path, results: Path) -> bool:
    """Runs what is missing of (row, seed); False where it was done or is another process's.

    Args:
      config: of the study.
      row, seed: see `runs`.
      workdir: holds the runs' checkpoints.
      results: folder of the JSON files.

    Raises:
      UserError: if a finished run was made with another configuration.
      Stopped: if the process was asked to stop; what was trained is saved.
    """
    path = results / f"{row}-seed{seed}.json"
    if path.exists():
        made_with = json.loads(path.read_text())["config"]
        if made_with != fingerprint(config_of_run(config, row, seed)):
            raise UserError(
                f"{path} was made with another configuration; delete it and the run's folder "
                f"{workdir / path.stem}, or give other --results and --workdir"
            )
        return False
    folder = workdir / f"{row}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with _claim(folder / "running") as mine:
        if not mine:
            print(f"{row}, seed {seed}: another process is at it", file=sys.stderr, flush=True)
            return False
        result = measure(config, row, seed, folder)
        staged = path.with_suffix(".json.tmp")
        staged.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(staged, path)
    return True


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process alone works on a run; a lock that dies with its owner."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def measure(config: ConfigDict, row: str, seed: int, folder: Path) -> dict[str, Any]:
    """Pre-trains one run (or resumes it) and scores it.

    A run whose loss is no longer finite has no scores, but the reason under 'failed'.
    """
    plain = config_of_run(config, row, seed)
    started = time.monotonic()
    mesh = sharding.mesh_for(plain)
    data = plain["data"]
    source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
    run = program.build(plain, mesh, images=len(source))
    trained = row != config.study.untrained
    print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
    about = {"row": row, "seed": seed}
    try:
        state = train.pretrain(plain, folder) if trained else program.new_state(run)
    except TrainingStopped as error:
        return about | {"config": fingerprint(plain), "scores": {}, "failed": str(error)}
    if trained and int(state.step) < run.total_steps:
        raise Stopped
    pretrained = time.monotonic()
    scores = KnnMonitor(run, source).evaluate(state)
    for mode in MODES:
        probed = _probe(plain, run, state, mode, trained)
        scores |= {f"{mode}/{name}": value for name, value in probed.items()}
    return about | {
        "differs": program.plain_config(config.study.differs[row]),
        "config": fingerprint(plain),
        "images_seen": int(state.step) * data["batch_size"],
        "scores": {name: value for name, value in scores.items() if np.isfinite(value)},
        "pretrain_s": round(pretrained - started, 1),
        "score_s": round(time.monotonic() - pretrained, 1),
        "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
    }


def _probe(
    plain: Mapping[str, Any], run: program.Program, state: TrainState, mode: str, trained: bool
) -> dict[str, float]:
    """Detection with what this method pre-trained; {} where the mode does not apply.

    'backbone+fpn' applies to methods that trained every level of the FPN that the probe reads.
    """
    levels = {f"P{COARSEST - s}" for s in run.objective.trained_levels if trained}
    if mode == "backbone+fpn" and not levels.issuperset(plain["probe"]["levels"]):
        return {}
    offered = ("backbone", "fpn") if trained else ("backbone",)
    variables = {
        name: {part: tree[part] for part in offered if part in tree}
        for name, tree in (
            ("params", jax.device_get(state.params["encoder"])),
            ("batch_stats", jax.device_get(state.batch_stats["encoder"])),
        )
    }
    return probe.probe(
        plain,
        settings(Architecture, plain["model"]),
        run.objective.encoder.numerics,
        variables,
        mode=mode,
        seed=plain["seed"],
        data=load(plain),
    )


def read(results: Path) -> list[dict[str, Any]]:
    """All finished runs of a folder."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*-seed*.json"))]


def table(finished: list[dict[str, Any]], rows: list[str]) -> str:
    """Markdown: mean ± standard deviation (n - 1) over seeds in percent, in the study's order."""
    lines = []
    for title, columns in TABLES.items():
        lines += [
            f"\n### {title}\n",
            "| row | seeds | " + " | ".join(heading for heading, _ in columns) + " |",
            "|---|---|" + "---|" * len(columns),
        ]
        for row in rows:
            own = [result["scores"] for result in finished if result["row"] == row]
            if own:
                cells = [_cell([scores.get(name) for scores in own]) for _, name in columns]
                lines.append(f"| {row} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float | None]) -> str:
    present = 100 * np.array([value for value in values if value is not None])
    if not len(present):
        return "-"
    spread = f" ± {present.std(ddof=1):.1f}" if len(present) > 1 else ""
    return f"{present.mean():.1f}{spread}"


MARKS = ("<!-- table: written by scripts/compare_methods.py -->", "<!-- end of table -->")


def write_table(document: Path, text: str) -> None:
    """Puts the table between the document's two marks; the words around it stay."""
    before, after = "# Study\n\n", "\n"
    if document.exists():
        whole = document.read_text()
        if MARKS[0] not in whole or MARKS[1] not in whole:
            raise UserError(f"{document} lacks the marks {MARKS[0]} and {MARKS[1]}")
        before, rest = whole.split(MARKS[0], 1)
        after = rest.split(MARKS[1], 1)[1]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}")
