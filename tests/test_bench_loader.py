"""Speed of the input pipeline: every stage is measured, and decoding workers end with the program."""

import os
import signal
import subprocess
import sys
import time

from mcl_jax.bench.loader import SyntheticPhotos, as_text, benchmark
from mcl_jax.data.loader_settings import LoaderSettings

LOADER = LoaderSettings(
    canvas_size=8,
    batch_size=8,
    process_index=0,
    process_count=1,
    workers=1,
    threads=0,
    max_unreadable_share=0.5,
    unreadable_grace=64,
)


def test_benchmark_reports_every_stage():
    rows = benchmark(
        SyntheticPhotos(100), canvas_size=64, batch_size=2, seconds=0.02, pipelines=[(0, 1)]
    )
    assert len(rows) == 6 and all(row["images_per_s"] > 0 for row in rows)
    assert len(as_text(rows).splitlines()) == 7


def test_workers_end_when_the_program_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from mcl_jax.bench.loader import SyntheticPhotos\n"
        "from mcl_jax.data.loader_settings import LoaderSettings\n"
        "from mcl_jax.data.pipeline import batches\n"
        "if __name__ == '__main__':\n"
        f"    loader = {LOADER!r}\n"
        "    iterator = batches(SyntheticPhotos(64), loader, seed=3, start_step=0, shuffle=True)\n"
        "    next(iterator)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as program:
        worker = int(program.stdout.readline())
        assert program.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while _is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(worker)


def _is_running(pid):
    """False also for a zombie, which nobody may be there to reap."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
