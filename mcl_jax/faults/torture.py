"""Faults on purpose: scenarios a run has to survive, for the tests and `mcl-jax torture`.

Every scenario runs `mcl-jax pretrain` as users do, see runs.py.
"""

import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mcl_jax.exit_codes import STOPPED
from mcl_jax.faults.runs import (
    PHASES,
    STEPS,
    TortureJob,
    checkpoints,
    finish,
    leftovers,
    log_of,
    losses,
    phase,
    require,
    size_of,
    wait_until,
)
from mcl_jax.runtime.checkpoint_folders import DAMAGED, FOLDER


def reference(job: TortureJob) -> dict[int, float]:
    """The uninterrupted run's losses."""
    workdir = job.scratch / "uninterrupted"
    if len(losses(workdir)) < STEPS:
        code, text = job.run(workdir)
        require(code == 0, f"the uninterrupted run ended with {code}:\n{text}")
    return losses(workdir)


def kills(job: TortureJob, count: int, seed: int, aims: Sequence[str] = PHASES) -> Iterator[str]:
    """kill -9 at random moments, in one phase after the other, again and again on one workdir.

    A run that reaches its end starts anew. Yields the phase of every kill.

    Raises:
      Broken: a loss differs from the uninterrupted run's, a finished checkpoint is gone, or
        something temporary is left at the end.
    """
    expected, rng, runs = reference(job), random.Random(seed), 0
    workdir = job.scratch / f"killed-{seed}-0"
    total = 0
    while total < count:
        aim, log_start = aims[total % len(aims)], size_of(log_of(workdir))
        before = checkpoints(workdir)
        process = job.start(workdir)
        met = wait_until(process, lambda w=workdir, s=log_start, a=aim: phase(w, s) == a)
        time.sleep(rng.uniform(0, 1.0 if aim in ("starting", "compiling") else 0.02) if met else 0)
        victim = phase(workdir, log_start)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            total += 1
            yield victim
        after = checkpoints(workdir)
        require(
            not before or (after and after[-1] >= before[-1]),
            f"{before} became {after} in {victim}",
        )
        if process.returncode == 0 or (after and after[-1] == STEPS):
            _require_whole(workdir, expected)
            runs += 1
            workdir = job.scratch / f"killed-{seed}-{runs}"
    code, text = job.run(workdir)
    require(code == 0, f"the last start ended with {code}:\n{text}")
    _require_whole(workdir, expected)


def _require_whole(workdir: Path, expected: dict[int, float]) -> None:
    stream = losses(workdir)
    wrong = [s for s in stream if stream[s] != expected[s]]
    require(not wrong, f"{workdir}: losses of steps {wrong} differ from the uninterrupted run's")
    if stream.keys() == expected.keys():  # the last process may have been killed while it closed
        require(not leftovers(workdir), f"{workdir}: left behind {leftovers(workdir)}")


def terminations(job: TortureJob, aims: Sequence[str]) -> Iterator[tuple[str, str]]:
    """SIGTERM in each phase: exit code 75, everything saved, and the same losses after resuming.

    Yields (phase, 'nothing to save' or 'step N saved').
    """
    reference_losses = reference(job)
    for aim in aims:
        workdir = job.scratch / f"terminated-{aim}"
        # an empty cache: the first compilation, in which Python runs no signal handler
        cold = replace(job, scratch=job.scratch / "cold") if aim == "compiling" else job
        cold.scratch.mkdir(exist_ok=True)
        process = cold.start(workdir)
        met = wait_until(
            process,
            lambda w=workdir, a=aim: phase(w, 0) == a and (a != "stepping" or losses(w)),
        )
        require(met, f"never saw {aim}")
        process.send_signal(signal.SIGTERM)
        code = finish(process)
        text = log_of(workdir).read_text(errors="replace")
        if aim == "starting" and code == -signal.SIGTERM:  # Python itself was still starting
            require(not checkpoints(workdir), "a checkpoint out of nowhere")
            yield aim, "nothing to save"
            continue
        saved = checkpoints(workdir)
        whole_run = saved and saved[-1] == STEPS  # it had just ended by itself
        expected = 0 if whole_run else STOPPED
        require(code == expected, f"SIGTERM while {aim}: exit code {code}\n{text}")
        if saved:
            require(f"step {saved[-1]} is saved" in text or saved[-1] == STEPS, text)
        else:
            require("nothing to save" in text, text)
            yield aim, "nothing to save"
            continue
        code, text = job.run(workdir)
        require(
            code == 0 and losses(workdir) == reference_losses, f"after SIGTERM while {aim}:\n{text}"
        )
        yield aim, f"step {saved[-1]} saved"


def device_changes(
    job: TortureJob, counts: Sequence[int], tolerance: float
) -> Iterator[tuple[int, float]]:
    """A run continued on other numbers of devices, with montages by group.

    Yields (devices, largest relative difference of a loss from the run on counts[0] alone).
    """
    flags = (f"--config.data.group_size={16 // max(counts)}", "--config.knn.every_epochs=0.0")
    # Small steps, for a rounding error grows tenfold with each of AdamW's: it decides on which side of
    # a ReLU's corner some of 100,000 values lie.
    flags += ("--config.optimizer.name=sgd", "--config.optimizer.base_lr=0.005")
    reference_folder, workdir = job.scratch / "one-count", job.scratch / "changing"
    code, text = job.run(reference_folder, *flags, devices=counts[0])
    require(code == 0, text)
    expected, share = losses(reference_folder), STEPS // len(counts)
    for devices in counts:
        last = devices == counts[-1] and len(losses(workdir)) >= share * (len(counts) - 1)
        stop = () if last else (f"--stop_after={share}",)
        code, text = job.run(workdir, *flags, *stop, devices=devices)
        require(code == 0, text)
        worst = max(abs(x / expected[s] - 1) for s, x in losses(workdir).items())
        require(worst <= tolerance, f"{devices} devices: losses differ by {worst:.1e}")
        yield devices, worst
    require(losses(workdir).keys() == expected.keys(), "steps are missing")


def damages(job: TortureJob) -> Iterator[tuple[str, str]]:
    """The newest checkpoint truncated, and with one bit flipped: the one before takes over."""
    expected = reference(job)
    for kind, harm in (("truncated", _truncate), ("bit flipped", _flip)):
        workdir = job.scratch / kind.replace(" ", "-")
        code, text = job.run(workdir, "--stop_after=6")
        require(code == 0, text)
        newest = workdir / FOLDER / str(checkpoints(workdir)[-1])
        harm(max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
        code, text = job.run(workdir)
        require(code == 0 and losses(workdir) == expected, text)
        require(f"step {newest.name} is damaged" in text, text)
        require((workdir / DAMAGED / newest.name).is_dir(), "the damaged one is gone")
        yield kind, f"fell back from step {newest.name}, same losses"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
