"""Writing a folder of results: all of its files, or none.

Shapes: arrays of any shape, compared name by name.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mcl_jax.paths import output_folder


def write(out: Path, fill: Callable[[Path], None]) -> list[Path]:
    """Lets `fill` write into a temporary folder beside `out`, then moves the files there.

    Files of the same names in `out` are replaced, others are left alone.

    Args:
      out: folder, made if need be.
      fill: writes and verifies everything, given the folder to write in.

    Returns:
      The written files, sorted.

    Raises:
      UserError: if `out` is a file or may not be written; and whatever `fill` raises, with nothing
        left behind.
    """
    out = Path(output_folder(out, "--out"))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        fill(temporary)
        out.mkdir(exist_ok=True)
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            (temporary / name).replace(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / name for name in names]


def demand_equal(
    read: Mapping[str, np.ndarray], written: Mapping[str, np.ndarray], file: str
) -> None:
    """RuntimeError unless a file gives back its arrays bit by bit, in the same order."""
    same = list(read) == list(written) and all(
        read[name].dtype == x.dtype and np.array_equal(read[name], x) for name, x in written.items()
    )
    if not same:
        raise RuntimeError(f"{file} does not read back as it was written: is the disk sound?")
