"""How a run's config and its place among the processes become arguments of the pipeline."""

from collections.abc import Mapping
from typing import Any

import jax


def arguments(data: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """What `pipeline.batches` and `pipeline.evaluation_batches` both take, on this process.

    Args:
      data: the section of a config; units stand in configs/base.py.
      batch_size: images of all devices together.
    """
    return {
        "canvas_size": data["canvas_size"],
        "batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "workers": data["workers"],
        "threads": data["threads"],
        "max_unreadable_share": data["max_unreadable_share"],
        "min_images_judged": data["unreadable_grace"],
    }
