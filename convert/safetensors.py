"""Export to safetensors: all networks of a checkpoint under their own names, with what made them.

Shapes: as in the checkpoint (kernels HWIO and [in, out]); nothing is transposed or left out but
the training state.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import architectures, folder, report, strict
from mcl_jax.errors import UserError

WEIGHTS = "mcl_{}.safetensors"


def import_safetensors() -> Any:
    """safetensors.numpy, or UserError with the command that installs it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            "--to safetensors needs safetensors: pip install 'mcl_jax[safetensors]'"
        ) from error
    return safetensors.numpy


def metadata(meta: Mapping[str, Any]) -> dict[str, str]:
    """What the file says of its origin; safetensors knows strings only, so `config` is JSON."""
    return {
        "format": "mcl_jax",
        "method": architectures.method(meta["config"]),
        "step": str(int(meta["step"])),
        "config": json.dumps(meta["config"], sort_keys=True),
        "mcl_jax": meta.get("mcl_jax", ""),
        "git_commit": meta.get("commit", ""),  # checkpoints did not always record it
    }


def write(path: Path, arrays: Mapping[str, np.ndarray], about: dict[str, str]) -> str:
    """Writes the file, reads it back, compares bit by bit; returns its sha256."""
    library = import_safetensors()
    library.save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path, about)
    read = library.load_file(path)
    folder.demand_equal(*(dict(sorted(x.items())) for x in (read, arrays)), path.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export(state: Mapping[str, Any], meta: Mapping[str, Any], source: str, out: Path) -> list[Path]:
    """Writes mcl_NAME.safetensors, report.json and report.txt into `out`, see `folder.write`.

    Args:
      state, meta: what `mcl_jax.checkpoint.read` returns.
      source: what the user called the checkpoint, for the report.
      out: folder.

    Returns:
      The written files.

    Raises:
      UserError: without safetensors, and naming every array that is not finite.
    """
    import_safetensors()
    a = architectures.from_config(meta["config"])
    arrays = report.networks(state)
    shapes = {name: x.shape for name, x in arrays.items()}
    strict.demand(strict.problems(arrays, shapes), "the checkpoint is not fit for use")
    weights = WEIGHTS.format(a.backbone)

    def fill(temporary: Path) -> None:
        digest = write(temporary / weights, arrays, metadata(meta))
        content = report.describe(
            "safetensors",
            state,
            meta,
            source,
            arrays,
            {name: name for name in arrays},
            notes=[],
            models={"mcl_jax": {"loads": "all", "from_scratch": "nothing"}},
            reasons={},
        )
        report.write(temporary, content | {"file": weights, "sha256": digest})

    return folder.write(out, fill)
