"""Faults on purpose: scenarios a run has to survive, for the tests and scripts/torture.py.

Every scenario runs scripts/pretrain.py as users do, in processes of its own, on a network small
enough that starting takes longer than training.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcl_jax.report import metrics
from mcl_jax.runtime.checkpoint_folders import DAMAGED, FOLDER, UNFINISHED

REPO = Path(__file__).resolve().parents[2]
STEPS = 12
EVERY = 4  # steps between kNN evaluations
SMALL = (
    "--config.data.dataset=scenes",
    "--config.data.split=train[:32]",
    "--config.data.batch_size=16",
    "--config.data.canvas_size=64",
    "--config.data.threads=1",
    "--config.model.width=4",
    "--config.model.fpn_channels=8",
    "--config.model.head_convs=1",
    "--config.model.projector_hidden=16",
    "--config.model.projector_out=8",
    "--config.model.predictor_hidden=16",
    "--config.montage.levels=2",
    f"--config.knn.every_epochs={EVERY / 2}",
    "--config.knn.max_images=64",
    "--config.knn.batch_size=32",
    f"--config.optimizer.epochs={STEPS / 2}",
    "--config.optimizer.warmup_epochs=1.0",
    "--config.log.montages=0",
    "--config.log.every_steps=1",
    "--config.log.checkpoint_steps=2",
)
PHASES = ("starting", "compiling", "stepping", "saving", "evaluating")


@dataclass(frozen=True)
class Job:
    """How a small run is started.

    Attributes:
      scratch: folder for workdirs and the shared compile cache.
      flags: after SMALL, so that they win.
      script: what is run.
      xla_flags: of the process's environment.
    """

    scratch: Path
    flags: tuple[str, ...] = ()
    script: Path = REPO / "scripts/pretrain.py"
    xla_flags: str = "--xla_backend_optimization_level=1"

    def start(
        self, workdir: Path, *flags: str, devices: int = 1, piped: bool = False
    ) -> "subprocess.Popen[bytes]":
        """The process; its messages go to WORKDIR.log, `piped`: through a process that may write."""
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {self.xla_flags}",
            "JAX_COMPILATION_CACHE_DIR": str(self.scratch / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
        }
        script = [sys.executable, str(self.script)]
        config = ["--config", str(REPO / "configs/demo.py"), f"--workdir={workdir}"]
        command = [*script, *config, *SMALL, *self.flags, *flags]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(log_of(workdir).open("ab"))
            if piped:
                sink = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
                log = stack.enter_context(sink.stdin)
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def run(self, workdir: Path, *flags: str, devices: int = 1) -> tuple[int, str]:
        """(exit code, all messages of this and earlier processes on this workdir)."""
        code = finish(self.start(workdir, *flags, devices=devices))
        return code, log_of(workdir).read_text(errors="replace")


def finish(process: "subprocess.Popen[bytes]", limit_s: float = 600) -> int:
    """The exit code; a process that hangs has not survived."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Broken(f"{process.args} hung for {limit_s:.0f} s") from None


def log_of(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.log")


def losses(workdir: Path) -> dict[int, float]:
    """step -> loss, of the lines written so far."""
    return {x["step"]: x["loss"] for x in metrics.read(workdir) if "loss" in x}


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    folder = workdir / FOLDER
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())


def leftovers(workdir: Path) -> list[str]:
    """Temporary files and folders."""
    found = [*workdir.rglob(UNFINISHED), *workdir.rglob("*.tmp")]
    return sorted(str(path.relative_to(workdir)) for path in found)


def phase(workdir: Path, log_start: int) -> str:
    """What a process that began at this byte of the log is doing, as far as can be seen."""
    text = log_of(workdir).read_bytes()[log_start:].decode(errors="replace")
    if " device(s), batch " not in text:
        return "starting"
    if "compiled after" not in text:
        return "compiling"
    lines = metrics.read(workdir)
    step = max((line["step"] for line in lines), default=0)
    here = [line for line in lines if line["step"] == step]
    if step % EVERY == 0 and not any("knn" in line for line in here) and _evaluates(workdir):
        return "evaluating"
    return "saving" if list((workdir / FOLDER).glob(UNFINISHED)) else "stepping"


def _evaluates(workdir: Path) -> bool:
    try:
        return json.loads((workdir / "config.json").read_text())["knn"]["every_epochs"] > 0
    except FileNotFoundError:  # not written yet
        return False


def wait_until(
    process: "subprocess.Popen[bytes]", condition: Callable[[], object], limit_s: float = 300
) -> bool:
    """Whether the condition came true while the process ran."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise Broken(f"{process.args} did not get there in {limit_s:.0f} s")
        time.sleep(0.005)
    return False


class Broken(AssertionError):
    """A run did not survive."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise Broken(message)


def reference(job: Job) -> dict[int, float]:
    """The uninterrupted run's losses."""
    workdir = job.scratch / "uninterrupted"
    if len(losses(workdir)) < STEPS:
        code, text = job.run(workdir)
        require(code == 0, f"the uninterrupted run ended with {code}:\n{text}")
    return losses(workdir)


def kills(job: Job, count: int, seed: int, aims: Sequence[str] = PHASES) -> Iterator[str]:
    """kill -9 at random moments, in one phase after the other, again and again on one workdir.

    A run that reaches its end starts anew. Yields the phase of every kill.

    Raises:
      Broken: a loss differs from the uninterrupted run's, a finished checkpoint is gone, or
        something temporary is left at the end.
    """
    whole, rng, runs = reference(job), random.Random(seed), 0
    workdir = job.scratch / f"killed-{seed}-0"
    done = 0
    while done < count:
        aim, log_start = aims[done % len(aims)], _size(log_of(workdir))
        before = checkpoints(workdir)
        process = job.start(workdir)
        met = wait_until(process, lambda w=workdir, s=log_start, a=aim: phase(w, s) == a)
        time.sleep(rng.uniform(0, 1.0 if aim in ("starting", "compiling") else 0.02) if met else 0)
        found = phase(workdir, log_start)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            done += 1
            yield found
        after = checkpoints(workdir)
        require(
            not before or (after and after[-1] >= before[-1]), f"{before} became {after} in {found}"
        )
        if process.returncode == 0 or (after and after[-1] == STEPS):
            _require_whole(workdir, whole)
            runs += 1
            workdir = job.scratch / f"killed-{seed}-{runs}"
    code, text = job.run(workdir)
    require(code == 0, f"the last start ended with {code}:\n{text}")
    _require_whole(workdir, whole)


def _require_whole(workdir: Path, whole: dict[int, float]) -> None:
    found = losses(workdir)
    wrong = [s for s in found if found[s] != whole[s]]
    require(not wrong, f"{workdir}: losses of steps {wrong} differ from the uninterrupted run's")
    if found.keys() == whole.keys():  # the last process may have been killed while it closed
        require(not leftovers(workdir), f"{workdir}: left behind {leftovers(workdir)}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def terminations(job: Job, aims: Sequence[str]) -> Iterator[tuple[str, str]]:
    """SIGTERM in each phase: exit code 0, everything saved, and the same losses after resuming.

    Yields (phase, 'nothing to save' or 'step N saved').
    """
    whole = reference(job)
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
        require(code == 0, f"SIGTERM while {aim}: exit code {code}\n{text}")
        saved = checkpoints(workdir)
        if saved:
            require(f"step {saved[-1]} is saved" in text or saved[-1] == STEPS, text)
        else:
            require("nothing to save" in text, text)
            yield aim, "nothing to save"
            continue
        code, text = job.run(workdir)
        require(code == 0 and losses(workdir) == whole, f"after SIGTERM while {aim}:\n{text}")
        yield aim, f"step {saved[-1]} saved"


def device_changes(
    job: Job, counts: Sequence[int], tolerance: float
) -> Iterator[tuple[int, float]]:
    """A run continued on other numbers of devices, with montages by group.

    Yields (devices, largest relative difference of a loss from the run on counts[0] alone).
    """
    flags = (f"--config.data.group_size={16 // max(counts)}", "--config.knn.every_epochs=0.0")
    whole, workdir = job.scratch / "one-count", job.scratch / "changing"
    code, text = job.run(whole, *flags, devices=counts[0])
    require(code == 0, text)
    expected, share = losses(whole), STEPS // len(counts)
    for devices in counts:
        last = devices == counts[-1] and len(losses(workdir)) >= share * (len(counts) - 1)
        stop = () if last else (f"--stop_after={share}",)
        code, text = job.run(workdir, *flags, *stop, devices=devices)
        require(code == 0, text)
        worst = max(abs(x / expected[s] - 1) for s, x in losses(workdir).items())
        require(worst <= tolerance, f"{devices} devices: losses differ by {worst:.1e}")
        yield devices, worst
    require(losses(workdir).keys() == expected.keys(), "steps are missing")


def damages(job: Job) -> Iterator[tuple[str, str]]:
    """The newest checkpoint truncated, and with one bit flipped: the one before takes over."""
    whole = reference(job)
    for kind, harm in (("truncated", _truncate), ("bit flipped", _flip)):
        workdir = job.scratch / kind.replace(" ", "-")
        code, text = job.run(workdir, "--stop_after=6")
        require(code == 0, text)
        newest = workdir / FOLDER / str(checkpoints(workdir)[-1])
        harm(max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
        code, text = job.run(workdir)
        require(code == 0 and losses(workdir) == whole, text)
        require(f"step {newest.name} is damaged" in text, text)
        require((workdir / DAMAGED / newest.name).is_dir(), "the damaged one is gone")
        yield kind, f"fell back from step {newest.name}, same losses"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def tally(found: Iterator[str]) -> dict[str, int]:
    """How often each."""
    return dict(Counter(found))
