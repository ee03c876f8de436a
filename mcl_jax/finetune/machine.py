"""The libraries, the device and the cores of a run, and its progress on the terminal."""

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcl_jax.errors import UserError

PACKAGES = {  # module -> what pip calls it; torchvision brings numpy and Pillow
    "torch": "torch",
    "torchvision": "torchvision",
    "pycocotools": "pycocotools",
    "cv2": "opencv-python-headless",
    "simplejpeg": "simplejpeg",
}
INSTALL = f"pip install {' '.join(PACKAGES.values())}"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: 'quota period' in us, or 'max period'
MOST_WORKERS = 8
BAR = 20  # characters of the progress bar


def demand_libraries() -> None:
    """UserError that says how to install what is missing."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name} cannot be imported ({error}): {INSTALL}") from error


def device(name: str) -> Any:
    """The torch device of `--device`: auto, cpu, cuda or cuda:N.

    Raises:
      UserError: there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
        raise UserError(f"--device {name} is none of auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise UserError(f"--device {name}: torch {torch.__version__} finds {count} CUDA devices")
    return torch.device(name)


def device_name(device: Any) -> str:
    """For people: the card, or the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, threads: {torch.get_num_threads()}"


def versions() -> dict[str, str]:
    """Of what computes the result."""
    import torch
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def cores() -> int:
    """Cores that this process may use: by its affinity, and by its container's quota."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or no quota
        return count


def set_threads(threads: int | None) -> str:
    """Tells torch how many threads to compute with; returns what was chosen, in words.

    torch waits in busy loops: with more threads than idle cores it is many times slower.

    Args:
      threads: `--threads`; None: OMP_NUM_THREADS, or else all cores.
    """
    import torch

    all_cores, source = cores(), "all cores that this process may use"
    count = all_cores
    if threads is not None:
        count, source = threads, "--threads"
    elif os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        count, source = int(os.environ["OMP_NUM_THREADS"]), "OMP_NUM_THREADS"
    if count < 1:
        raise UserError(f"{source} {count} must be at least 1")
    torch.set_num_threads(count)
    words = f"threads: {count} ({source})"
    load = os.getloadavg()[0]
    if count + load > all_cores + 0.5:
        words += (
            f"; {all_cores} cores and a load of {load:.1f}: others compute too, and torch is many times "
            "slower with more threads than idle cores (--threads)"
        )
    return words


def workers(count: int | None, device: Any) -> int:
    """Processes that read images ahead; None: some for a GPU, none on the CPU they would compete for."""
    if count is not None:
        if count < 0:
            raise UserError(f"--workers {count} must be at least 0")
        return count
    return min(cores(), MOST_WORKERS) if device.type == "cuda" else 0


class Progress:
    """A bar on a line of stderr that is rewritten; away from a terminal, a line now and then."""

    EVERY_S = 30.0  # away from a terminal

    def __init__(self, what: str, total: int, start: int = 0):
        self.what, self.total, self.start = what, total, start
        self.began = time.perf_counter()
        self.shown = self.began if not sys.stderr.isatty() else 0.0

    def update(self, done: int, words: str = "") -> None:
        """Shows that `done` of the total are done."""
        now = time.perf_counter()
        each = (now - self.began) / max(done - self.start, 1)
        rest_s = each * (self.total - done)
        filled = round(BAR * done / self.total)
        bar = "#" * filled + "." * (BAR - filled)
        timing = f"{each:.2f} s each, {_duration(rest_s)} left"
        text = f"{self.what} [{bar}] {done}/{self.total} {words}{timing}"
        if sys.stderr.isatty():
            if now - self.shown > 0.1 or done == self.total:
                end = "\n" if done == self.total else ""
                print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)
                self.shown = now
        elif now - self.shown > self.EVERY_S or done == self.total:
            print(text, file=sys.stderr, flush=True)
            self.shown = now


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if hours < 2
        else f"{hours:.1f} h"
    )
