"""Checkpoints, for the commands that evaluate them."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from mcl_jax import cli, program
from mcl_jax.configs import base
from mcl_jax.runtime import checkpoint


def read(
    folder: str, overrides: Mapping[tuple[str, str], flags.FlagHolder]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(state, meta, configuration) of a run's folder or one of its checkpoints.

    Args:
      folder: see `checkpoint.read`.
      overrides: see `cli.complete`.
    """
    state, meta = checkpoint.read(folder)
    defaults = program.plain_config(base.get_config())
    return state, meta, cli.complete(meta["config"], defaults, overrides)
