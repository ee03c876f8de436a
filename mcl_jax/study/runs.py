"""One run of a comparison: pre-train, score frozen features, probe detection.

Every finished run is one JSON file, written when all of it is done; what exists is never computed
again, so a study goes on where it stopped and several processes may share the work.
"""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mcl_jax import program, sharding, train
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import probe
from mcl_jax.evaluate.detection.data import ProbeData, load
from mcl_jax.evaluate.detection.training import Conduct
from mcl_jax.evaluate.monitor import KnnMonitor
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.pyramid import COARSEST
from mcl_jax.report import metrics
from mcl_jax.runtime import lease, provenance, storage
from mcl_jax.runtime.health import TrainingStopped
from mcl_jax.runtime.preemption import Preempted
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState
from mcl_jax.study import rows, table


class StudyStopped(Exception):
    """The process was asked to stop; the same command goes on later."""


def complete(
    config: ConfigDict,
    row: str,
    seed: int,
    *,
    workdir: Place,
    results: Place,
    owner: bool = False,
) -> bool:
    """Runs what is missing of (row, seed); False where it was done or is another process's.

    Args:
      config: of the study.
      row, seed: see `rows.runs`.
      workdir: holds the runs' checkpoints.
      results: folder of the JSON files.
      owner: of the process, see `train.pretrain`.

    Raises:
      UserError: if a finished run was made with another configuration.
      StudyStopped: if the process was asked to stop; what was trained is saved.
    """
    path = results / f"{row}-seed{seed}.json"
    if storage.exists(path):
        made_with = table.read_run(path)["config"]
        if made_with != rows.fingerprint(rows.config_of_run(config, row, seed)):
            raise UserError(
                f"{path} was made with another configuration; delete it and the run's folder "
                f"{workdir / path.stem}, or give other --results and --workdir"
            )
        return False
    folder = workdir / f"{row}-seed{seed}"
    try:
        with lease.hold(folder):
            result = measure(config, row, seed, folder=folder, owner=owner)
            storage.write_result(path, json.dumps(result, indent=1) + "\n")
    except lease.Held as error:
        print(f"{row}, seed {seed}: left out, {error}", file=sys.stderr, flush=True)
        return False
    return True


def measure(
    config: ConfigDict, row: str, seed: int, *, folder: Place, owner: bool = False
) -> dict[str, Any]:
    """Pre-trains one run (or resumes it) and scores it.

    A run whose loss is no longer finite has no scores, but the reason under 'failed'.

    Args:
      config, row, seed, owner: see `complete`.
      folder: workdir of the run.

    Returns:
      'row', 'seed', 'differs' (of the row), 'config' (fingerprint), 'images_seen', 'scores' (shares
      in [0, 1]: kNN's names, and 'MODE@LABELS/NAME' of the probe), 'pretrain_s', 'score_s', 'devices',
      'commit'.
    """
    plain = rows.config_of_run(config, row, seed)
    about = {"row": row, "seed": seed, "config": rows.fingerprint(plain)}
    mesh = sharding.mesh_for(plain)
    data = plain["data"]
    source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
    labeled = load(plain)  # before the hours of training: it may be missing
    run = program.build(plain, mesh, images=len(source))
    trained = row != config.study.untrained
    print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
    try:
        state = train.pretrain(plain, folder, owner=owner) if trained else program.new_state(run)
    except Preempted as error:
        raise StudyStopped from error
    except TrainingStopped as error:
        return about | {"scores": {}, "failed": str(error)}
    if trained and int(state.step) < run.total_steps:
        raise StudyStopped
    started = time.monotonic()
    scores = KnnMonitor(run, source).evaluate(state)
    variables = _variables(state, trained=trained)
    for mode in applicable(config, run, trained=trained):
        for labels in config.study.labels:
            probed = _probe(run, variables, labeled, mode=mode, labels=labels)
            name = f"{mode}@{labels or 'all'}"
            scores |= {f"{name}/{key}": value for key, value in probed.items()}
    return about | {
        "differs": program.plain_config(config.study.differs[row]),
        "images_seen": int(state.step) * data["batch_size"],
        "scores": {name: value for name, value in scores.items() if np.isfinite(value)},
        "pretrain_s": round(metrics.training_seconds(metrics.read(folder), data["batch_size"]), 1),
        "score_s": round(time.monotonic() - started, 1),
        "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
        "commit": provenance.commit(),
    }


def applicable(config: ConfigDict, run: program.Program, *, trained: bool) -> list[str]:
    """The study's modes of the probe that a row can have.

    'backbone+fpn' is for methods that trained every level of the FPN that the probe reads.
    """
    levels = {f"P{COARSEST - s}" for s in run.objective.trained_levels if trained}
    whole_pyramid = levels.issuperset(run.config["probe"]["levels"])
    return [mode for mode in config.study.modes if whole_pyramid or mode != "backbone+fpn"]


def _probe(
    run: program.Program, variables: Mapping[str, Any], data: ProbeData, *, mode: str, labels: int
) -> dict[str, float]:
    """Detection with what this method pre-trained; `labels` 0: all."""
    plain = run.config
    prepared = probe.prepare(
        plain,
        fill(Architecture, plain["model"]),
        run.objective.encoder.numerics,
        variables,
        mode=mode,
        seed=plain["seed"],
        data=data,
        labels=labels or None,
    )
    return probe.measure(prepared, conduct=Conduct(threads=plain["data"]["threads"])).scores


def _variables(state: TrainState, *, trained: bool) -> dict[str, Any]:
    """What a probe takes over: backbone and FPN, or the backbone alone where nothing is trained."""
    offered = ("backbone", "fpn") if trained else ("backbone",)
    return {
        name: {part: tree[part] for part in offered if part in tree}
        for name, tree in (
            ("params", jax.device_get(state.params["encoder"])),
            ("batch_stats", jax.device_get(state.batch_stats["encoder"])),
        )
    }
