"""Files that are there wholly or not at all, whenever the process is killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file under a temporary name, then gives it its own.

    Args:
      path: of the file; its folder exists.
      write: gets the open binary file.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
