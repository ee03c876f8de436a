"""The names that runs and evaluations use in their folders, and what may lie there under them."""

import os
from collections.abc import Iterable

from mcl_jax import paths
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

FOLDERS = (
    *("checkpoints", "damaged_checkpoints", "owner", "xla_cache", "profile", "exports"),
    *("tensorboard", "wandb", "mlruns"),
)
FILES = (
    *("config.json", "metrics.jsonl", "montage.png", "curves.png", "card.html"),
    *("wandb_run.txt", "mlflow_run.txt"),
    *("result.json", "classifiers.npz", "state.npz", "boxes.png"),
)
_HINT = "a run needs this name for itself: move it away, or give another folder"


def demand_usable(place: Place, folders: Iterable[str] = ()) -> None:
    """Looks at what is in a folder that a run is about to use; nothing is made.

    Args:
      place: of the folder, which need not be there. What is in a bucket has no kind.
      folders: more names of folders.

    Raises:
      UserError: a name of ours is another kind of thing, or may not be written to.

    Example:
      >>> demand_usable(storage.locate("runs/mcl"))
    """
    folder = storage.local(place)
    if folder is None:
        return
    for name in (*FOLDERS, *folders):
        if os.path.lexists(folder / name):
            paths.output_folder(folder / name, "the run's own", f"it must be a folder; {_HINT}")
    for name in FILES:
        if os.path.lexists(folder / name):
            paths.existing_file(folder / name, "the run's own", f"it must be a file; {_HINT}")
