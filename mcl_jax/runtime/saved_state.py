"""What is in a checkpoint's folder, without its arrays: shapes and `meta`."""

import json
from typing import Any

import orbax.checkpoint as ocp

from mcl_jax.runtime import renamed_keys, storage
from mcl_jax.runtime.storage import Place


def shapes(folder: Place) -> Any:
    """A step's state as a tree of orbax's metadata, which have shapes."""
    return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def meta(folder: Place) -> dict[str, Any]:
    """A step's `meta`, its config's keys under their names of today."""
    return modern(json.loads(storage.read(folder / "meta" / "metadata")))


def modern(meta: dict[str, Any]) -> dict[str, Any]:
    """The same with the config's keys under their names of today."""
    return meta | {"config": renamed_keys.modern(meta["config"])} if "config" in meta else meta
