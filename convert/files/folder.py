"""Writing a folder of results: all of its files, or none.

Shapes: arrays of any shape, compared name by name.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mcl_jax import whole_file
from mcl_jax.paths import output_folder
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place


def write(out: Place, fill: Callable[[Path], None]) -> list[Place]:
    """Lets `fill` write into a temporary folder, beside `out` on disks, then moves the files there.

    Files of the same names in `out` are replaced, others are left alone.

    Args:
      out: folder, made if need be.
      fill: writes and verifies everything, given the folder to write in.

    Returns:
      The written files, sorted.

    Raises:
      UserError: if `out` is a file or may not be written; CannotSave if the disk takes no more; and
        whatever `fill` raises, with nothing left behind.
    """
    out = storage.locate(output_folder(out, "--out"))
    storage.reachable(out)
    storage.make_folder(out.parent)
    beside = out.parent if storage.renames(out) else None
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=beside))
    try:
        with whole_file.saving(out):
            fill(temporary)
            storage.make_folder(out)
            names = sorted(path.name for path in temporary.iterdir())
            for name in names:
                storage.adopt(temporary / name, out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / name for name in names]


def demand_equal(
    arrays: Mapping[str, np.ndarray], originals: Mapping[str, np.ndarray], file: str
) -> None:
    """RuntimeError unless a file gives back its arrays bit by bit, in the same order."""
    same = list(arrays) == list(originals) and all(
        arrays[name].dtype == x.dtype and np.array_equal(arrays[name], x)
        for name, x in originals.items()
    )
    if not same:
        raise RuntimeError(f"{file} does not read back as it was written: is the disk sound?")
