"""A checkpoint of a run, averaged and divided as asked, to any target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcl_jax.convert import export, transform
from mcl_jax.convert.arguments import OFFICIAL
from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.names.layouts import NETWORKS
from mcl_jax.convert.targets import authors
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError
from mcl_jax.runtime import checkpoint, checkpoint_folders


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported.

    Attributes:
      source: a run's folder, or one of its checkpoints.
      target: one of TARGETS, or OFFICIAL.
      out: folder; a file for OFFICIAL.
      parts: see `export.chosen_parts`.
      average: of how many of the newest checkpoints; None: the newest alone.
      divide_weights: by what; see `transform.divide`.
      fold_norms: see `transform.fold`.
    """

    source: Path
    target: str
    out: Path
    parts: str | None = None
    average: int | None = None
    divide_weights: float | None = None
    fold_norms: bool = False


def write(request: ExportRequest) -> tuple[Sequence[Any], list[str]]:
    """Writes the files; see `export.export`.

    Returns:
      (files, what was done to the weights before, in words). For OFFICIAL lines about the file take
      the place of the files.
    """
    if request.target == OFFICIAL and (request.parts or request.fold_norms):
        raise UserError("--parts and --fold-norms: mcl-official is always whole")
    snapshot = _prepared(request)
    if request.target == OFFICIAL:
        return authors.export(snapshot, request.out), list(snapshot.changes)
    written = export.export(
        TARGETS[request.target],
        snapshot,
        request.out,
        parts=request.parts,
        folded=request.fold_norms,
    )
    return written, list(snapshot.changes)


def demand_possible(target: str, config: Mapping[str, Any]) -> None:
    """UserError for a run that a target cannot take, or a library that is not installed.

    Args:
      target: one of TARGETS.
      config: of the run, plain.
    """
    chosen_target = TARGETS[target]
    chosen_target.format.check()
    parts = export.chosen_parts(chosen_target, request=None, config=config)
    chosen_target.demand(
        export.ExportJob(Snapshot({}, {"config": config}), parts, weights=Path(target))
    )


def _prepared(request: ExportRequest) -> Snapshot:
    """The checkpoint, averaged and divided as asked."""
    state, meta = checkpoint.read(request.source)
    state = {name: state[name] for name in NETWORKS if name in state}  # no optimizer, no queues
    changes = []
    if request.average is not None:
        steps = checkpoint_folders.newest(request.source, request.average)
        state |= transform.average(checkpoint.read(path)[0] for path in steps)
        names = ", ".join(path.name for path in steps)
        changes.append(f"the mean of {len(steps)} checkpoints, of steps {names}")
    if request.divide_weights is not None:
        state |= transform.divide(state, meta["config"], request.divide_weights)
        changes.append(
            f"weights of backbone, FPN and head, norms excepted, divided by "
            f"{request.divide_weights:g} (running means too, variances by its square)"
        )
    workdir = checkpoint_folders.find(request.source)[0].parent
    return Snapshot(state, meta, str(request.source), changes=tuple(changes), workdir=workdir)
