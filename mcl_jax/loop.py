"""The loop of a run: one function that reads top to bottom."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mcl_jax import program, sharding
from mcl_jax.data import loader_settings, pipeline
from mcl_jax.data.record import Source
from mcl_jax.evaluate.monitor import KnnMonitor
from mcl_jax.program import Program
from mcl_jax.report import plots, writers
from mcl_jax.report.metrics import MetricWriter
from mcl_jax.report.profile import Window
from mcl_jax.report.progress import Bar
from mcl_jax.report.run_page import RunPage
from mcl_jax.report.step_log import Callback, StepLog
from mcl_jax.report.throughput import Throughput
from mcl_jax.runtime import lease, optional, storage
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.health import HealthCheck
from mcl_jax.runtime.preemption import Preemption
from mcl_jax.state import TrainState


@dataclass(frozen=True)
class Session:
    """What a call of `train.pretrain` holds while its steps run.

    Attributes:
      run: objective, optimizer, schedules.
      source: the training images.
      workdir: receives everything that is written.
      meta: of every checkpoint.
      checkpointer: of the workdir.
      ownership: of the workdir; None on all but the first process.
      preemption: knows of requests to stop.
      monitor: of kNN accuracy.
      callbacks, profile, stop_after: see `train.pretrain`.
    """

    run: Program
    source: Source
    workdir: storage.Place
    meta: dict[str, Any]
    checkpointer: Checkpointer
    ownership: lease.Lease | None
    preemption: Preemption
    monitor: KnnMonitor
    callbacks: Sequence[Callback]
    profile: tuple[int, int] | None
    stop_after: int | None


def train(session: Session, state: TrainState, compiled: jax.stages.Compiled) -> TrainState:
    """Steps from `state.step` to the run's end, or until asked to stop.

    Args:
      session: see there.
      state: of the step to go on from; its arrays are given to the first step.
      compiled: `program.lower_step` of the run, compiled.

    Returns:
      The last state; its save has begun.

    Raises:
      TrainingStopped: on NaN or collapse.
      CannotSave: if nothing can be saved any more.
    """
    run, monitor, checkpointer = session.run, session.monitor, session.checkpointer
    start, first_process = int(state.step), jax.process_index() == 0
    log = run.config["log"]
    seed = program.seed_argument(run)
    health = HealthCheck(log, run.config["model"]["projector_out"], checkpointer.latest_step)
    meter, values = Throughput(run.config["data"]["batch_size"], start), {}
    bar = Bar(
        total=run.total_steps,
        initial=start,
        unit="step",
        disable=not first_process,
        every_s=log["progress_s"],
    )
    with (
        _results(run, session.workdir, start, enabled=first_process) as (writer, page),
        contextlib.closing(Window(session.profile, session.workdir / "profile")) as window,
        open_batches(run, session.source, start) as batches,
        bar,
    ):
        steps = StepLog(
            writer, page, health=health, meter=meter, bar=bar, callbacks=session.callbacks
        )
        checkpointer.before_commit = writer.sync  # a checkpoint's metrics are on disk before it is
        evaluate_start = monitor.later(state) if start == 0 else None
        meter.restart(start)
        for step in range(start, run.total_steps):
            with meter.waiting(values):
                batch = next(batches)
            inputs = {name: batch[name] for name in run.objective.batch_fields}
            window.before(step + 1, state)
            state, values = compiled(state, sharding.put_batch(inputs, run.mesh), seed)
            window.after(step + 1, values, compiled)
            session.preemption.guard_work()
            if step == 0 and first_process and log["montages"] > 0:  # while the devices work
                _draw_montages(run, batch, session.workdir)
            if evaluate_start is not None:  # only now: the first step need not wait for it
                jax.block_until_ready(values)
                with meter.paused():
                    writer.write(0, evaluate_start())
                evaluate_start = None  # and its copy of the network
            done = step + 1
            stops = session.preemption.requested_after(done) or done - start == session.stop_after
            last = done == run.total_steps or stops
            steps.write()  # an earlier step's metrics, fetched while this one runs
            save = done % log["checkpoint_steps"] == 0 or last
            if done % log["every_steps"] == 0 or save:
                steps.keep(done, values)
            if save:  # only what passed the health check
                steps.write()
                if session.ownership is not None:
                    session.ownership.check()
                checkpointer.save(state, session.meta, last=last)
            if monitor.due(done) and not stops:
                writer.write(done, monitor.evaluate(state))
                meter.restart(done)
            bar.update(done - bar.n)
            if last:
                break
    return state


@contextlib.contextmanager
def _results(
    run: Program, workdir: storage.Place, start: int, *, enabled: bool
) -> Iterator[tuple[MetricWriter, RunPage | None]]:
    """Metrics and the run's page; however the run ends, both are closed and complete."""
    config, log_section = program.plain_config(run.config), run.config["log"]
    about = writers.About(tuple(log_section["writers"]), log_section["project"], config)
    writer = MetricWriter(workdir, start, enabled=enabled, about=about)
    page = (
        RunPage(config, workdir, total_steps=run.total_steps, every_s=log_section["page_s"])
        if enabled
        else None
    )
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


def _draw_montages(run: Program, batch: Mapping[str, np.ndarray], workdir: storage.Place) -> None:
    """montage.png: the first device's inputs of step 0, exactly as the step makes them."""
    b = run.objective.images_per_device
    images = {name: batch[name][:b] for name in run.objective.batch_fields}
    inputs = jax.jit(run.objective.inputs)(program.seed_argument(run), 0, images, 0)
    with optional.optional("montage.png"):
        plots.sheet(
            workdir / "montage.png",
            run.objective.pictures(inputs),
            mean=run.config["augment"]["mean"],
            std=run.config["augment"]["std"],
            columns=run.config["log"]["montages"],
        )
