"""The training program: one loop that reads top to bottom."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import mcl_jax
from mcl_jax import paths, program, sharding
from mcl_jax.data import folder, loader_settings, pipeline
from mcl_jax.data.record import Source, data_digest
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate.monitor import KnnMonitor
from mcl_jax.program import Program
from mcl_jax.report import plots, writers
from mcl_jax.report.metrics import MetricWriter
from mcl_jax.report.profile import Window
from mcl_jax.report.progress import Bar
from mcl_jax.report.run_page import RunPage
from mcl_jax.report.step_log import Callback, StepLog
from mcl_jax.report.throughput import Throughput
from mcl_jax.runtime import hosts, lease, memory, optional, provenance, storage
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.compile_cache import compile_cache
from mcl_jax.runtime.health import HealthCheck
from mcl_jax.runtime.preemption import Preempted, Preemption
from mcl_jax.runtime.start import rare_collections
from mcl_jax.settings import changes, door, teaching
from mcl_jax.state import TrainState

log = logging.getLogger(__name__)


def pretrain(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    stop_after: int | None = None,
    owner: bool = False,
    callbacks: Sequence[Callback] = (),
    profile: tuple[int, int] | None = None,
    at_end: Callable[[int], None] | None = None,
) -> TrainState:
    """Pre-trains until the configured number of epochs, or until asked to stop.

    The same workdir resumes: 1. its newest checkpoint, 2. otherwise from scratch. Batches, views and
    montages depend on (seed, step) alone, so a resumed run repeats the uninterrupted one bit by bit
    on the same devices.

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
    door.check(config)
    writers.demand_installed(tuple(config["log"]["writers"]))
    workdir = storage.absolute(paths.output_folder(workdir, "workdir"))
    folder.demand_apart(config["data"]["dataset"], workdir)
    writers.demand_place(tuple(config["log"]["writers"]), workdir)
    storage.reachable(workdir)
    optional.begin()
    first_process = jax.process_index() == 0
    with (
        Preemption(owner) as preemption,
        compile_cache(workdir / "xla_cache"),
        rare_collections(),
    ):
        data = config["data"]
        source = open_source(data["dataset"], data["split"], data["data_dir"] or None)
        teaching.check_labels(config, source)
        draws_montages = first_process and config["log"]["montages"] > 0
        mesh = sharding.mesh_for(config)
        teaching.check_run(config, mesh.size, len(source))
        run = program.build(config, mesh, images=len(source))
        monitor = KnnMonitor(run, source)
        with (
            lease.hold(workdir) as ownership,
            Checkpointer(workdir, keep=config["log"]["keep_checkpoints"]) as checkpointer,
        ):
            saved = checkpointer.latest_step
            health = HealthCheck(config["log"], config["model"]["projector_out"], saved)
            meta = _meta(run, source)
            _say(_described(run, source), first_process)  # before the first compilation
            state = _restore_or_start(run, meta, checkpointer)
            start = int(state.step)
            _announce(run, source, start, first_process, workdir)
            at_end = at_end if first_process else None
            if start == run.total_steps:
                if at_end:
                    at_end(start)
                return state
            compiled = program.lower_step(run).compile()
            memory.demand_room(compiled)
            hosts.meet("compiled")
            _say(f"compiled after {time.monotonic() - started:.0f} s", first_process)
            log_every = config["log"]["every_steps"]
            save_every = config["log"]["checkpoint_steps"]
            seed = program.seed_argument(run)
            meter, values = Throughput(data["batch_size"], start), {}
            bar = Bar(
                total=run.total_steps,
                initial=start,
                unit="step",
                disable=not first_process,
                every_s=config["log"]["progress_s"],
            )
            with (
                _results(run, workdir, start, first_process) as (writer, page),
                contextlib.closing(Window(profile, workdir / "profile")) as window,
                open_batches(run, source, start) as batches,
                bar,
            ):
                steps = StepLog(writer, page, health, meter, bar, callbacks)
                checkpointer.before_commit = writer.sync  # metrics are on disk first
                evaluate_start = monitor.later(state) if start == 0 else None
                meter.restart(start)
                for step in range(start, run.total_steps):
                    with meter.waiting(values):
                        batch = next(batches)
                    inputs = {name: batch[name] for name in run.objective.batch_fields}
                    window.before(step + 1, state)
                    state, values = compiled(state, sharding.put_batch(inputs, mesh), seed)
                    window.after(step + 1, values, compiled)
                    preemption.guard_work()
                    if step == 0 and draws_montages:  # while the devices work
                        _draw_montages(run, batch, workdir)
                    if evaluate_start is not None:  # only now: the first step comes sooner
                        jax.block_until_ready(values)
                        with meter.paused():
                            writer.write(0, evaluate_start())
                        evaluate_start = None  # and its copy of the network
                    done = step + 1
                    asked = preemption.requested_after(done) or done - start == stop_after
                    last = done == run.total_steps or asked
                    steps.write()  # an earlier step's metrics, fetched while this one runs
                    save = done % save_every == 0 or last
                    if done % log_every == 0 or save:
                        steps.keep(done, values)
                    if save:  # only what passed the health check
                        steps.write()
                        if ownership is not None:
                            ownership.check()
                        checkpointer.save(state, meta, last)
                    if monitor.due(done) and not asked:
                        writer.write(done, monitor.evaluate(state))
                        meter.restart(done)
                    bar.update(done - bar.n)
                    if last:
                        break
            checkpointer.wait()
            if int(state.step) < run.total_steps:
                _say(f"stopped on request; step {int(state.step)} is saved", first_process)
                if owner and preemption.stopped:
                    raise Preempted
            elif at_end:
                at_end(run.total_steps)
            return state


@contextlib.contextmanager
def _results(
    run: Program, workdir: storage.Place, start: int, enabled: bool
) -> Iterator[tuple[MetricWriter, RunPage | None]]:
    """Metrics and the run's page; however the run ends, both are closed and complete."""
    config, log_section = program.plain_config(run.config), run.config["log"]
    about = writers.About(tuple(log_section["writers"]), log_section["project"], config)
    writer = MetricWriter(workdir, start, enabled, about)
    page = RunPage(config, workdir, run.total_steps, log_section["page_s"]) if enabled else None
    try:
        yield writer, page
    finally:
        writer.close()
        if page is not None:
            page.close()


def open_batches(run: Program, source: Source, start_step: int) -> "pipeline.BatchIterator":
    """This process's stream of training batches from a step on."""
    data = run.config["data"]
    return pipeline.batches(
        source,
        loader_settings.of_this_process(data, data["batch_size"]),
        seed=run.config["seed"],
        start_step=start_step,
        shuffle=True,
    )


def _meta(run: Program, source: Source) -> dict[str, Any]:
    """What a checkpoint says of its origin; `changes.differences` compares two of them."""
    return {
        "config": program.plain_config(run.config),
        "mcl_jax": mcl_jax.__version__,
        "commit": provenance.commit(),
        "images": len(source),
        "data_digest": data_digest(source),
    }


def _restore_or_start(
    run: Program, meta: Mapping[str, Any], checkpointer: Checkpointer
) -> TrainState:
    """The newest checkpoint's state, or a new one; says what has changed since the checkpoint."""

    def explain(saved: Mapping[str, Any]) -> str:
        found = changes.differences(saved, meta)
        for change in found:
            log.warning("changed since the checkpoint: %s", change.line)
        return ", ".join(map(str, changes.of_arrays(found)))

    found = checkpointer.restore(program.abstract_state(run), explain)
    return program.new_state(run) if found is None else found[0]


def _announce(run: Program, source: Source, start: int, show: bool, workdir: storage.Place) -> None:
    if start == run.total_steps:
        _say(f"step {start} of {run.total_steps}: nothing left to do", show)
        return
    if start > run.total_steps:
        raise UserError(
            f"the checkpoint is of step {start}, but this run ends at step {run.total_steps} "
            f"({len(source)} images, data.batch_size {run.config['data']['batch_size']}, "
            f"optimizer.epochs {run.config['optimizer']['epochs']:g}): nothing was trained. Raise "
            "optimizer.epochs to go on, or give another --workdir"
        )
    if show:
        plain = program.plain_config(run.config)
        with optional.optional("config.json"):
            storage.write(workdir / "config.json", json.dumps(plain, indent=2) + "\n")
    resumed = " (resumed)" if start else ""
    _say(
        f"steps {start} to {run.total_steps}{resumed}; compiling, which takes minutes for a large "
        "network",
        show,
    )


def _described(run: Program, source: Source) -> str:
    return (
        f"{len(source)} images, {run.mesh.size} {jax.default_backend()} device(s), batch "
        f"{run.config['data']['batch_size']}, {run.steps_per_epoch} steps per epoch"
    )


def _say(message: str, show: bool) -> None:
    if show:
        print(message, file=sys.stderr, flush=True)


def _draw_montages(run: Program, batch: Mapping[str, np.ndarray], workdir: storage.Place) -> None:
    """montage.png: the first device's inputs of step 0, exactly as the step makes them."""
    b = run.objective.images_per_device
    images = {name: batch[name][:b] for name in run.objective.batch_fields}
    inputs = jax.jit(run.objective.inputs)(program.seed_argument(run), 0, images, 0)
    with optional.optional("montage.png"):
        plots.sheet(
            workdir / "montage.png",
            run.objective.pictures(inputs),
            run.config["augment"]["mean"],
            run.config["augment"]["std"],
            columns=run.config["log"]["montages"],
        )


def check_workdir(workdir: str | None) -> storage.Place:
    """The --workdir flag as a usable folder; UserError otherwise."""
    if not workdir:
        raise UserError("--workdir FOLDER is missing: where checkpoints and pictures go")
    place = storage.locate(paths.output_folder(workdir, "--workdir"))
    storage.reachable(place)
    return place
