"""Whole checkpoints, read and written. A run's lie in WORKDIR/checkpoints/STEP: `state` and `meta`.

`meta` is JSON: the plain config, the step, and what produced the checkpoint.
"""

import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mcl_jax import paths
from mcl_jax.errors import UserError
from mcl_jax.runtime import integrity, lease, saved_state, storage
from mcl_jax.runtime.checkpoint_folders import FOLDER, find
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.rules import whole_number
from mcl_jax.state import TrainState


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint as numpy, without needing its config or devices.

    Args:
      path: a workdir (newest step), its `checkpoints` folder, or one step's folder.

    Returns:
      (state, meta): nested dicts of numpy arrays under the field names of TrainState, and
      {'config': ..., 'step': ...}.

    Raises:
      UserError: if it is not a checkpoint, is damaged or cannot be read.
    """
    folder, step = find(path)
    jax.process_count()  # orbax asks it too; a platform that is not here is no fault of the file's
    try:
        reason = integrity.damage(folder / str(step))
    except OSError as error:
        raise UserError(f"checkpoint {folder / str(step)} cannot be read: {error}") from error
    if reason:
        raise UserError(f"checkpoint {folder / str(step)} is damaged: {reason}")
    try:
        reader = ocp.PyTreeCheckpointHandler()
        tree = saved_state.shapes(folder / str(step))
        # numpy arrays need no devices, so a pod's checkpoint opens on a laptop
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        state = reader.restore(folder / str(step) / "state", args=arguments)
        meta = saved_state.meta(folder / str(step))
    except Exception as error:  # orbax raises many kinds for a damaged checkpoint
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"checkpoint {folder / str(step)} cannot be read: {reason}") from error
    return state, meta


def write(workdir: str | os.PathLike, state: TrainState, meta: dict[str, Any]) -> Place:
    """Writes one checkpoint into a workdir that `mcl-jax pretrain` can resume.

    Raises:
      UserError: if the workdir already holds checkpoints, or may not be written to.
    """
    folder = storage.absolute(paths.output_folder(workdir, "--out")) / FOLDER
    storage.reachable(folder)
    if any(whole_number(name) is not None for name in storage.names(folder)):
        raise UserError(f"{workdir} already holds checkpoints; choose a new folder")
    with lease.hold(workdir), Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(state, meta)
        checkpointer.wait()
    return folder / str(int(state.step))
