"""Faults of data, workers and flags (see runs.py)."""

import contextlib
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcl_jax.data import pipeline
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.data.record import Source
from mcl_jax.data.sources import open_source
from mcl_jax.faults import images as faulty_images
from mcl_jax.faults.runs import TortureJob, require

# Relative: the order of float32 sums differs.
LOSS_TOLERANCE = 2e-5
# Broken images are counted here, none of them stops the loader.
LOADER = LoaderSettings(
    canvas_size=32,
    batch_size=8,
    process_index=0,
    process_count=1,
    workers=0,
    threads=1,
    max_unreadable_share=1.0,
    unreadable_grace=0,
)


def images(folder: Path, count: int, seed: int) -> list[str]:
    """Odd files are read, broken ones counted and named, good ones untouched by either."""
    each = -(-count // len(faulty_images.KINDS))
    usable = faulty_images.fill(folder, good=each, of_each_kind=each, seed=seed)
    source = open_source(f"folder:{folder}", "train", data_dir=None)
    require(len(source) == len(usable), f"{len(source)} of {len(usable)} files are listed")
    valid = _validity(source)
    names = [Path(source[i].name).name for i in range(len(source))]
    mistakes = [n for n, readable in zip(names, valid, strict=True) if usable[n] != readable]
    require(not mistakes, f"{len(mistakes)} files were judged wrongly, among them {mistakes[:3]}")
    kinds = faulty_images.KINDS.items()
    return [f"{each} x {kind}: {'read' if works else 'refused'}" for kind, (works, _) in kinds]


def _validity(source: Source) -> np.ndarray:
    """Per record whether the loader could use it, without a line for each that it could not."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    with pipeline.evaluation_batches(source, LOADER) as batches:
        valid = np.concatenate([batch["valid"] for batch in batches])[: len(source)]
    logging.getLogger().setLevel(level)
    return valid


def worker_killed(seed: int) -> list[str]:
    """kill -9 of a decoding process: the stream of batches does not change."""
    source = open_source("scenes", "train[:64]", data_dir=None)

    def stream(workers: int) -> pipeline.BatchIterator:
        loader = replace(LOADER, workers=workers, max_unreadable_share=0.0)
        return pipeline.batches(source, loader, seed=seed, start_step=3, shuffle=True)

    others = _children()
    with stream(0) as plain, stream(2) as batches:
        for step in range(12):
            if step == 4:
                victims = _children() - others
                require(victims, "there is no worker to kill")
                os.kill(min(victims), signal.SIGKILL)
                time.sleep(0.2)
            undisturbed, batch = next(plain), next(batches)
            same = np.array_equal(undisturbed["index"], batch["index"])
            require(same and np.array_equal(undisturbed["image"], batch["image"]), f"batch {step}")
    return ["12 batches equal to those of an undisturbed loader"]


def _children() -> set[int]:
    """Decoding processes of this one."""
    pids: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    spawned = (p for p in pids if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text())
    return set(spawned)


def mistakes(job: TortureJob) -> list[str]:
    """Wrong keys, types, counts, folders and names: one line, exit code 2, nothing written."""
    cases = {
        "--config.data.batchsize=3": "did you mean data.batch_size",
        "--config.data.batch_size=many": "data.batch_size is 'many'",
        "--config.data.batch_size=0": "data.batch_size is 0",
        "--config.data.dataset=folder:/nowhere": "/nowhere",
        "--config.montage.levels=7": "montage.levels is 7",
        "--config.optimizer.name=adam": "optimizer.name is 'adam'",
    }
    lines = []
    for flag, message in cases.items():
        workdir = job.scratch / "mistake"
        code, text = job.run(workdir, flag)
        last_line = text.strip().splitlines()[-1]
        one_line = last_line.startswith("error: ") and "Traceback" not in text
        require(code == 2 and one_line and message in last_line, f"{flag}: exit {code}\n{text}")
        require(not workdir.exists() or not any(workdir.iterdir()), f"{flag} left files behind")
        lines.append(last_line)
    return lines
