"""Faults of folders: a second owner, a full disk, data that changed or went away (see torture.py)."""

import resource
import shutil
import signal
from collections.abc import Iterator

import cv2
import numpy as np

from mcl_jax import exit_codes
from mcl_jax.faults.runs import (
    STEPS,
    TortureJob,
    checkpoints,
    finish,
    log_of,
    losses,
    require,
    wait_until,
)
from mcl_jax.faults.torture import reference


def second_owner(job: TortureJob) -> Iterator[str]:
    """The same command twice: the second is refused, the first ends as if nothing had been."""
    reference_losses, workdir = reference(job), job.scratch / "owned"
    first = job.start(workdir)
    require(wait_until(first, lambda: losses(workdir)), "the first run never stepped")
    first.send_signal(signal.SIGSTOP)  # it must not be done before the second has looked
    log = log_of(workdir)
    try:
        before = log.stat().st_size
        code = finish(job.start(workdir))
        output = log.read_bytes()[before:].decode(errors="replace").strip()
    finally:
        first.send_signal(signal.SIGCONT)
    last_line = output.splitlines()[-1]
    refused = code == exit_codes.USER_ERROR and last_line.startswith("error: ")
    require(refused and f"process {first.pid}, since" in last_line, f"exit {code}\n{output}")
    yield last_line
    code = finish(first)
    require(code == 0 and losses(workdir) == reference_losses, f"the first ended with {code}")
    yield "the first: same losses as alone"
    holder = job.start(job.scratch / "killed-owner")
    require(wait_until(holder, lambda: losses(job.scratch / "killed-owner")), "never stepped")
    holder.kill()
    holder.wait()
    code, text = job.run(job.scratch / "killed-owner")
    require(code == 0 and losses(job.scratch / "killed-owner") == reference_losses, text)
    yield "after kill -9 of the owner: the next start goes on at once"


def disk_full(job: TortureJob) -> Iterator[str]:
    """No byte can be written any more, in the middle of a run."""
    reference_losses, workdir = reference(job), job.scratch / "full"
    process = job.start(workdir, piped=True)
    require(wait_until(process, lambda: checkpoints(workdir)), "never saved")
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
    code = finish(process)
    text = log_of(workdir).read_text(errors="replace")
    last_line = text.strip().splitlines()[-1]
    require("Traceback" not in text, text)
    require(
        code == exit_codes.CANNOT_SAVE and last_line.startswith("error: "), f"exit {code}\n{text}"
    )
    require(text.count("metrics.jsonl: not written") == 1, text)
    yield last_line
    saved = checkpoints(workdir)
    code, text = job.run(workdir)
    require(saved and code == 0 and losses(workdir) == reference_losses, text)
    yield f"with room again: goes on from step {saved[-1]}, same losses"


def data_gone(job: TortureJob) -> Iterator[str]:
    """The data folder is moved away during a run: one line that names it, nothing lost."""
    folder, elsewhere = job.scratch / "photos", job.scratch / "photos-moved"
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(32):
        cv2.imwrite(str(folder / f"{i:02}.png"), rng.integers(0, 255, (48, 48, 3), np.uint8))
    flags = (f"--config.data.dataset=folder:{folder}", "--config.data.split=train")
    flags += ("--config.knn.every_epochs=0.0",)
    workdir = job.scratch / "data-gone"
    process = job.start(workdir, *flags)
    require(wait_until(process, lambda: checkpoints(workdir)), "never saved")
    shutil.move(folder, elsewhere)
    code = finish(process)
    text = log_of(workdir).read_text(errors="replace")
    last_line = text.strip().splitlines()[-1]
    named = last_line.startswith("error: ") and str(folder) in last_line and "Traceback" not in text
    require(code == exit_codes.USER_ERROR and named, f"exit {code}\n{text}")
    yield last_line
    shutil.move(elsewhere, folder)
    code, text = job.run(workdir, *flags)
    require(code == 0 and checkpoints(workdir)[-1] == STEPS, text)
    yield "put back: goes on to the end"


def data_changed(job: TortureJob) -> Iterator[str]:
    """Half of the images are deleted between two starts: both counts are told, training goes on."""
    folder = job.scratch / "photos-changed"
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(64):
        cv2.imwrite(str(folder / f"{i:02}.png"), rng.integers(0, 255, (48, 48, 3), np.uint8))
    flags = (f"--config.data.dataset=folder:{folder}", "--config.data.split=train")
    flags += ("--config.knn.every_epochs=0.0", "--config.optimizer.epochs=6.0")
    workdir = job.scratch / "data-changed"
    code, text = job.run(workdir, *flags, "--stop_after=6")
    require(code == 0, text)
    for path in sorted(folder.iterdir())[::2]:
        path.unlink()
    code, text = job.run(workdir, *flags)
    lines = [line for line in text.splitlines() if "images 64 -> 32" in line]
    require(code == 0 and len(lines) == 1, f"exit {code}\n{text}")
    yield lines[0]
