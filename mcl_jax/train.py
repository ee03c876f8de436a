"""A run from its configuration to its last state. Its steps are in loop.py."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

import mcl_jax
from mcl_jax import loop, paths, program, sharding
from mcl_jax.data import folder
from mcl_jax.data.record import Source, data_digest
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate.monitor import KnnMonitor
from mcl_jax.program import Program
from mcl_jax.report import writers
from mcl_jax.report.step_log import Callback
from mcl_jax.runtime import hosts, lease, memory, optional, provenance, storage, workdir_names
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.compile_cache import compile_cache
from mcl_jax.runtime.preemption import Preempted, Preemption
from mcl_jax.runtime.start import rare_collections
from mcl_jax.settings import changes, door, teaching
from mcl_jax.state import TrainState

logger = logging.getLogger(__name__)


def pretrain(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    stop_after: int | None = None,
    owner: bool = False,
    callbacks: Sequence[Callback] = (),
    profile: tuple[int, int] | None = None,
    at_end: Callable[[int], None] | None = None,
) -> TrainState:
    """Pre-trains until the configured number of epochs, or until asked to stop.

    The same workdir resumes: 1. its newest checkpoint, 2. otherwise from scratch. Batches, views and
    montages depend on (seed, step) alone, so a resumed run repeats the uninterrupted one bit by bit
    on the same devices (on GPUs with XLA_FLAGS=--xla_gpu_deterministic_ops=true, see docs/gpu.md).

    Args:
      config: as configs/base.py.
      workdir: a folder or gs://BUCKET/NAME, created; receives config.json, checkpoints/,
        metrics.jsonl, tensorboard/, montage.png and curves.png, and XLA's compile cache.
      stop_after: steps of this call after which to save and stop; None: run to the end.
      owner: whether the process belongs to this run, as a script's does: then SIGTERM stops it too,
        and before the first new step both signals end the process. Handlers and JAX's compile cache
        are put back in any case.
      callbacks: called with every logged step and its metrics, in every process.
      profile: (first, last) step to trace into WORKDIR/profile; None: none.
      at_end: called by the first process with the last step, once the run is at its end and saved.

    Returns:
      The last state. Without `owner`, Ctrl-C returns early, after saving.

    Raises:
      UserError: for anything wrong with config, data or checkpoint; `lease.Held` if another run is
        in this workdir, `CannotSave` if nothing can be saved any more.
      TrainingStopped: on NaN or collapse.
      Preempted: with `owner`, if a signal stopped the run before its end, after saving.
    """
    started = time.monotonic()
    workdir = _checked(config, workdir)
    optional.begin()
    at_end = at_end if at_end and jax.process_index() == 0 else lambda step: None
    with (
        Preemption(owner=owner) as preemption,
        compile_cache(workdir / "xla_cache"),
        rare_collections(),
    ):
        run, source = _opened(config)
        monitor = KnnMonitor(run, source)
        with (
            lease.hold(workdir) as ownership,
            Checkpointer(workdir, keep=config["log"]["keep_checkpoints"]) as checkpointer,
        ):
            _say(_described(run, source))  # before the first compilation
            meta = _meta(run, source)
            state = _restored(run, meta, checkpointer)
            start = 0 if state is None else int(state.step)
            _announce(run, source, start=start, workdir=workdir)
            if start < run.total_steps:
                state, compiled = _compiled(run, state)
                hosts.meet("compiled")
                _say(f"compiled after {time.monotonic() - started:.0f} s")
                session = loop.Session(
                    run=run,
                    source=source,
                    workdir=workdir,
                    meta=meta,
                    checkpointer=checkpointer,
                    ownership=ownership,
                    preemption=preemption,
                    monitor=monitor,
                    callbacks=callbacks,
                    profile=profile,
                    stop_after=stop_after,
                )
                state = loop.train(session, state, compiled)
                checkpointer.wait()
            if int(state.step) == run.total_steps:
                at_end(run.total_steps)
                return state
            _say(f"stopped on request; step {int(state.step)} is saved")
            if owner and preemption.stopped:
                raise Preempted
            return state


def _checked(config: Mapping[str, Any], workdir: str | os.PathLike) -> storage.Place:
    """The workdir, after everything that can be found wrong before data are opened."""
    door.check(config)
    writers_asked = tuple(config["log"]["writers"])
    writers.demand_installed(writers_asked)
    place = storage.absolute(_usable(workdir, "workdir"))
    folder.demand_apart(config["data"]["dataset"], place)
    writers.demand_place(writers_asked, place)
    return place


def _opened(config: Mapping[str, Any]) -> tuple[Program, Source]:
    """(what is trained, on what), once it is known that it can teach something."""
    data = config["data"]
    source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
    teaching.check_labels(config, source)
    mesh = sharding.mesh_for(config)
    teaching.check_run(config, mesh.size, len(source))
    return program.build(config, mesh, images=len(source)), source


def _meta(run: Program, source: Source) -> dict[str, Any]:
    """What a checkpoint says of its origin; `changes.differences` compares two of them."""
    return {
        "config": program.plain_config(run.config),
        "mcl_jax": mcl_jax.__version__,
        "commit": provenance.commit(),
        "images": len(source),
        "data_digest": data_digest(source),
    }


def _restored(
    run: Program, meta: Mapping[str, Any], checkpointer: Checkpointer
) -> TrainState | None:
    """The newest checkpoint's state, if there is one; says what has changed since it was saved."""

    def explain(saved: Mapping[str, Any]) -> str:
        differences = changes.differences(saved, meta)
        for change in differences:
            logger.warning("changed since the checkpoint: %s", change.line)
        return ", ".join(map(str, changes.of_arrays(differences)))

    state_and_meta = checkpointer.restore(program.abstract_state(run), explain)
    return None if state_and_meta is None else state_and_meta[0]


def _compiled(run: Program, state: TrainState | None) -> tuple[TrainState, jax.stages.Compiled]:
    """The state to begin with, a new one where `state` is None, and the train step.

    Both are compiled at the same time: on a GPU the new state's program alone takes half a minute
    (docs/gpu.md). It runs after that: there the compiler times kernels on the device.
    """
    with ThreadPoolExecutor(1) as beside:
        creating = beside.submit(program.compile_new_state, run) if state is None else None
        compiled = program.lower_step(run).compile()
    memory.demand_room(compiled)
    if creating is not None:
        state = creating.result()(program.seed_argument(run))
    return state, compiled


def _announce(run: Program, source: Source, start: int, workdir: storage.Place) -> None:
    if start == run.total_steps:
        _say(f"step {start} of {run.total_steps}: nothing left to do")
        return
    if start > run.total_steps:
        raise UserError(
            f"the checkpoint is of step {start}, but this run ends at step {run.total_steps} "
            f"({len(source)} images, data.batch_size {run.config['data']['batch_size']}, "
            f"optimizer.epochs {run.config['optimizer']['epochs']:g}): nothing was trained. Raise "
            "optimizer.epochs to go on, or give another --workdir"
        )
    if jax.process_index() == 0:
        plain = program.plain_config(run.config)
        with optional.optional("config.json"):
            storage.write(workdir / "config.json", json.dumps(plain, indent=2) + "\n")
    resumed = " (resumed)" if start else ""
    _say(
        f"steps {start} to {run.total_steps}{resumed}; compiling, which takes minutes for a large "
        "network"
    )


def _described(run: Program, source: Source) -> str:
    return (
        f"{len(source)} images, {run.mesh.size} {jax.default_backend()} device(s), batch "
        f"{run.config['data']['batch_size']}, {run.steps_per_epoch} steps per epoch"
    )


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def check_workdir(workdir: str | None) -> storage.Place:
    """The --workdir flag as a usable folder; UserError otherwise."""
    if not workdir:
        raise UserError("--workdir FOLDER is missing: where checkpoints and pictures go")
    return _usable(workdir, "--workdir")


def _usable(workdir: str | os.PathLike, name: str) -> storage.Place:
    place = storage.locate(paths.output_folder(workdir, name))
    storage.reachable(place)
    workdir_names.demand_usable(place)
    return place
