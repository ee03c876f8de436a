"""Small runs of `mcl-jax pretrain` in processes of their own, and what can be seen of them.

The network is small enough that starting takes longer than training.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcl_jax.report import metrics
from mcl_jax.runtime import compile_cache
from mcl_jax.runtime.checkpoint_folders import FOLDER, UNFINISHED

PRETRAIN = ("-m", "mcl_jax", "pretrain")
STEPS = 12
EVALUATION_STEPS = 4  # between kNN evaluations
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
    f"--config.knn.every_epochs={EVALUATION_STEPS / 2}",
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
class TortureJob:
    """How a small run is started.

    Attributes:
      scratch: folder for workdirs and the shared compile cache.
      flags: after SMALL, so that they win.
      program: what Python runs.
      xla_flags: of the process's environment.
    """

    scratch: Path
    flags: tuple[str, ...] = ()
    program: tuple[str, ...] = PRETRAIN
    xla_flags: str = "--xla_backend_optimization_level=1"

    def start(
        self, workdir: Path, *flags: str, devices: int = 1, piped: bool = False
    ) -> "subprocess.Popen[bytes]":
        """The process; its messages go to WORKDIR.log, `piped`: through a process that may write."""
        environment = os.environ | compile_cache.variables(self.scratch / "cache")
        environment |= {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {self.xla_flags}",
            "JAX_PLATFORMS": "cpu",
        }
        config = ["--config", "demo", f"--workdir={workdir}"]
        command = [sys.executable, *self.program, *config, *SMALL, *self.flags, *flags]
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
    paths = [*workdir.rglob(UNFINISHED), *workdir.rglob("*.tmp")]
    return sorted(str(path.relative_to(workdir)) for path in paths)


def phase(workdir: Path, log_start: int) -> str:
    """What a process that began at this byte of the log is doing, as far as can be seen."""
    text = log_of(workdir).read_bytes()[log_start:].decode(errors="replace")
    if " device(s), batch " not in text:
        return "starting"
    if "compiled after" not in text:
        return "compiling"
    lines = metrics.read(workdir)
    step = max((line["step"] for line in lines), default=0)
    evaluated = any("knn" in line for line in lines if line["step"] == step)
    if step % EVALUATION_STEPS == 0 and not evaluated and _evaluates(workdir):
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


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none yet."""
    return path.stat().st_size if path.exists() else 0


def tally(names: Iterator[str]) -> dict[str, int]:
    """How often each."""
    return dict(Counter(names))
