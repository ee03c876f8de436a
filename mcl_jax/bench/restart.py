"""A pre-training run that is killed and started again, watched from outside.

Says how long the command takes to its first step, cold and with a warm compile cache, whether
anything is compiled after that, and whether the losses after it are those of a run that was never
killed.
"""

import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mcl_jax.bench import commands
from mcl_jax.report import metrics

POLL_S = 0.02
LEAST_RESUMED = 5  # steps of the second process
# What JAX logs of every program under JAX_LOG_COMPILES (also of those that come from the cache).
_COMPILED = re.compile(r"Finished XLA compilation of (\S+) in ([\d.]+) sec")
_CACHE_HIT = re.compile(r"Persistent compilation cache hit for '([^']+)'")
LOGGED = {"JAX_LOG_COMPILES": "1"}


@dataclass
class Run:
    """One process of the run.

    Attributes:
      first_step_s: from the command to the first step whose loss is known.
      programs: (seconds since the command, name, seconds it took) of every compilation.
      cached: names of programs that came from the compile cache.
      output: its lines.
    """

    first_step_s: float = float("nan")
    programs: list[tuple[float, str, float]] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        after = [name for second, name, _ in self.programs if second > self.first_step_s]
        slowest = sorted(self.programs, key=lambda program: -program[2])[:5]
        return {
            "first_step_s": self.first_step_s,
            "programs": len(self.programs),
            "compile_s": sum(seconds for *_, seconds in self.programs),
            "slowest_programs": {name: seconds for _, name, seconds in slowest},
            "from_cache": len(self.cached),
            "compiled_after_first_step": after,
        }


def measure(
    command: Sequence[str],
    workdir: Path,
    *,
    environment: Mapping[str, str],
    steps: int,
    kill_after: int,
    seconds: float,
) -> dict[str, Any]:
    """Runs, kills and resumes.

    Args:
      command: of mcl-jax pretrain with log.every_steps=1 and a log.checkpoint_steps below
        kill_after; without --workdir and --stop_after.
      workdir: a new folder.
      environment: variables beside this process's.
      steps: of the whole; more only if the first process was beyond them when it could be killed.
      kill_after: the first process gets SIGKILL once this step is logged and a checkpoint finished.
      seconds: both together may take.

    Returns:
      {'cold', 'resumed': each {'first_step_s', 'programs', 'compile_s', 'compiled_after_first_step',
      ...}, 'killed_at', 'resumed_from', 'repeated_steps', 'first_loss_difference' (of the first step
      that both did, relative), 'largest_loss_difference' (of all of them), 'complete' (every step
      logged once), 'images_per_s', 'data_wait': medians after the first steps, 'losses'}.

    Raises:
      commands.CommandFailed: if a process ends early or time is up.
    """
    end = time.monotonic() + seconds
    watch = partial(_watch, workdir=workdir, environment={**environment, **LOGGED}, end=end)
    command = [*command, f"--workdir={workdir}"]
    first = watch(command, first_step=1, kill_after=kill_after)
    before = _losses(workdir)
    resumed_from = max(_checkpoints(workdir))
    steps = max(steps, resumed_from + LEAST_RESUMED)  # where saving took longer than the steps
    resume = [*command, f"--stop_after={steps - resumed_from}"]
    second = watch(resume, first_step=resumed_from + 1, kill_after=None)
    lines = [line for line in metrics.read(workdir) if "loss" in line]
    after = {line["step"]: line["loss"] for line in lines}
    repeated = sorted(step for step in before if step > resumed_from and step in after)
    differences = [abs(before[s] - after[s]) / abs(before[s]) for s in repeated]
    settled = [line for line in lines if line["step"] > resumed_from + 2]
    return {
        "cold": first.summary(),
        "resumed": second.summary(),
        "first_step_s": first.first_step_s,
        "resumed_first_step_s": second.first_step_s,
        "killed_at": max(before),
        "resumed_from": resumed_from,
        "repeated_steps": len(repeated),
        "first_loss_difference": differences[0] if differences else 0.0,
        "largest_loss_difference": max(differences, default=0.0),
        "complete": [line["step"] for line in lines] == list(range(1, steps + 1)),
        "images_per_s": median(line["images_per_s"] for line in settled),
        "data_wait": median(line["data_wait"] for line in settled),
        "losses": [after[step] for step in sorted(after)],
    }


def _watch(
    command: Sequence[str],
    *,
    workdir: Path,
    environment: Mapping[str, str],
    end: float,
    first_step: int,
    kill_after: int | None,
) -> Run:
    """Runs a command until it ends by itself, or is killed after a step."""
    started = time.monotonic()
    line_count = len(metrics.read(workdir))
    process = commands.start(command, environment, stdout=subprocess.PIPE)
    run = Run()
    reader = threading.Thread(target=_listen, args=(process, run, started), daemon=True)
    reader.start()
    try:
        while True:
            ended = process.poll() is not None  # asked first: what it wrote before counts
            if run.first_step_s != run.first_step_s:
                lines = metrics.read(workdir)
                new_lines = lines if len(lines) != line_count else []
                if any("loss" in line and line["step"] == first_step for line in new_lines):
                    run.first_step_s = time.monotonic() - started
            if ended:
                break
            if kill_after is not None and _may_be_killed(workdir, kill_after):
                return run
            if time.monotonic() > end:
                raise commands.CommandFailed(f"time was up; it said: {_tail(run)}")
            time.sleep(POLL_S)
    finally:
        commands.kill(process)
        process.wait()
        reader.join()
    if kill_after is not None or process.returncode:
        raise commands.CommandFailed(f"it ended with {process.returncode}: {_tail(run)}")
    return run


def _listen(process: subprocess.Popen, run: Run, started: float) -> None:
    for line in process.stdout:
        if match := _COMPILED.search(line):
            seconds = time.monotonic() - started
            run.programs.append((seconds, match[1], float(match[2])))
        elif match := _CACHE_HIT.search(line):
            run.cached.append(match[1])
        else:
            run.output.append(line)


def _tail(run: Run) -> str:
    return "".join(run.output)[-commands.TAIL :]


def _may_be_killed(workdir: Path, step: int) -> bool:
    return max(_losses(workdir), default=0) >= step and bool(_checkpoints(workdir))


def _losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def _checkpoints(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints; what is not finished has another name."""
    folder = workdir / "checkpoints"
    return [int(e.name) for e in folder.iterdir() if e.name.isdigit()] if folder.is_dir() else []
