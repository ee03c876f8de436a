"""What `--json` of a command means: its result, also in a file, on a disk or in a bucket."""

import json
from typing import Any


def write_json(path: str | None, result: Any) -> None:
    """Writes a result, whole or not at all; nothing without a path.

    Raises:
      CannotSave: the disk or bucket fails; what was printed before is what is left.
    """
    if not path:
        return
    from mcl_jax.runtime import storage  # help needs no such library

    storage.write_result(storage.locate(path), json.dumps(result, indent=2) + "\n")
