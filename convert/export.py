"""One frame for all exports: weights, the target's own files, report and checks, all or nothing.

Shapes: those of a target's layout.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcl_jax.convert import transform
from mcl_jax.convert.checks import forward, model_card, report, selfcheck
from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.files import folder
from mcl_jax.convert.files import formats as files
from mcl_jax.convert.files.formats import Format
from mcl_jax.convert.names import architectures
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.layouts import FileLayout
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.report import card
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place


@dataclass(frozen=True)
class ExportJob:
    """What is exported.

    Attributes:
      snapshot: the checkpoint.
      parts: which of architectures.PARTS.
      weights: where the user will find the file of weights.
      folded: whether FPN and head absorb their norms, see transform.fold.
    """

    snapshot: Snapshot
    parts: tuple[str, ...]
    weights: Place
    folded: bool = False

    @property
    def state(self) -> Mapping[str, Any]:
        return self.snapshot.state

    @property
    def config(self) -> Mapping[str, Any]:
        return self.snapshot.meta["config"]

    @property
    def architecture(self) -> Architecture:
        return architectures.from_config(self.config)


@dataclass(frozen=True)
class Target:
    """Where a checkpoint can go.

    Attributes:
      name: what `--to` calls it.
      format: of the file of weights.
      stem: (architecture, parts) -> the file's name without suffix.
      parts: which of architectures.PARTS it has.
      default: what `--parts` is where it is not given.
      demand: UserError for a network that it does not have.
      layout: what the file holds.
      files: the target's own files beside the weights: name -> text.
      notes: what the user has to know, in words.
      models: model of the target -> its 'loads' and 'from_scratch', in words.
      reasons: why parts of the checkpoint stay behind, see report.left_out.
    """

    name: str
    format: Format
    stem: Callable[[Architecture, Sequence[str]], str]
    parts: tuple[str, ...]
    default: str
    demand: Callable[[ExportJob], None]
    layout: Callable[[ExportJob], FileLayout]
    files: Callable[[ExportJob], dict[str, str]]
    notes: Callable[[ExportJob], list[str]]
    models: Callable[[ExportJob], dict[str, dict[str, str]]]
    reasons: Callable[[ExportJob], dict[str, str]]


def chosen_parts(target: Target, request: str | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    """`--parts` as some of architectures.PARTS; 'all' is all that target and run have.

    Raises:
      UserError: for a word that is no part, and for a part that target or run do not have.
    """
    trained = [part for part in architectures.detector_parts(config) if part in target.parts]
    if request is None:
        request = target.default
    if request == "all":
        return tuple(trained)
    words = request.split(",")
    for word in words:
        if word not in PARTS:
            raise UserError(f"--parts {request}: {word!r} is not one of {', '.join(PARTS)}, or all")
        if word not in target.parts:
            raise UserError(
                f"--parts {request}: --to {target.name} has no {word}, only {', '.join(target.parts)}"
            )
        if word not in trained:
            raise UserError(
                f"--parts {request}: this run pre-trained no {word} that a detector could load, "
                f"only {', '.join(trained)}"
            )
    return tuple(part for part in PARTS if part in words)


def export(
    target: Target,
    snapshot: Snapshot,
    out: Place,
    *,
    parts: str | None = None,
    folded: bool = False,
) -> list[Place]:
    """Writes weights, the target's own files, report.json, report.txt and card.html into `out`.

    The written weights are read back, compared with the checkpoint array by array, and run on a
    fixed image (convert/checks/selfcheck.py), before anything appears in `out`; see `folder.write`.

    Args:
      target: one of convert.targets.
      snapshot: the checkpoint.
      out: folder.
      parts: see `chosen_parts`.
      folded: see transform.fold.

    Returns:
      The written files.

    Raises:
      UserError: a network that the target does not have, a library that is not installed, a wrong
        array, a failed check.

    Example:
      state, meta = checkpoint.read(Path("runs/mcl/checkpoints/90000"))
      export(TARGETS["detectron2"], Snapshot(state, meta, "runs/mcl"), Path("exported"))
    """
    meta = snapshot.meta
    a = architectures.from_config(meta["config"])
    part_names = chosen_parts(target, request=parts, config=meta["config"])
    weights = f"mcl_{target.stem(a, part_names)}{target.format.suffix}"
    path = storage.absolute(out) / weights
    job = ExportJob(snapshot, part_names, weights=path, folded=folded)
    target.demand(job)
    target.format.check()  # last: what cannot be asked for needs no library
    subject = f"the checkpoint does not hold the {a.backbone} that its configuration names"
    if folded:
        job = _fold(target, job, subject)
    layout = target.layout(job)
    model = layout.to_file(job.state, subject)

    def fill(temporary: Path) -> None:
        arrays = _write(target, temporary / weights, model=model, meta=meta)
        layout.demand_same(arrays, job.state)
        errors = selfcheck.check(
            arrays, layout, state=snapshot.state, a=a, parts=part_names, config=meta["config"]
        )
        for name, text in target.files(job).items():
            (temporary / name).write_text(text, encoding="utf-8")
        content = _report(target, job, model=model, layout=layout)
        digest = files.sha256(temporary / weights)
        content |= {"file": weights, "self_check": errors, "sha256": digest}
        report.write(temporary, content)
        commit = meta.get("commit", "")
        page = model_card.text(content, meta["config"], commit=commit, workdir=snapshot.workdir)
        card.write(temporary / card.FILE, page)

    return folder.write(out, fill)


def _write(
    target: Target, path: Path, model: Mapping[str, Any], meta: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Writes the weights; returns them as they are read back, which is bit by bit what they were."""
    target.format.write(path, model, about(meta))
    arrays = target.format.read(path)
    folder.demand_equal(arrays, model, path.name)
    return arrays


def _fold(target: Target, job: ExportJob, subject: str) -> ExportJob:
    """The job with its norms folded; what is wrong with the arrays is said by their own names."""
    target.layout(replace(job, folded=False)).to_file(job.state, subject)
    state = transform.fold(job.state, job.parts, forward.EPSILON)
    note = "FPN and head: norms folded into kernels and biases; this cannot be undone"
    changes = (*job.snapshot.changes, note)
    return replace(job, snapshot=replace(job.snapshot, state=state, changes=changes))


def _report(
    target: Target, job: ExportJob, model: Mapping[str, Any], layout: FileLayout
) -> dict[str, Any]:
    """What the report says before anything is written."""
    return report.describe(
        target.name,
        job.snapshot,
        model=model,
        sources=layout.sources,
        notes=target.notes(job),
        models=target.models(job),
        reasons=target.reasons(job),
    )


def about(meta: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of its origin, where its format has a place; strings alone."""
    return {
        "format": "mcl_jax",
        "method": architectures.method(meta["config"]),
        "step": str(int(meta["step"])),
        "config": json.dumps(meta["config"], sort_keys=True),
        "mcl_jax": meta.get("mcl_jax", ""),
        "git_commit": meta.get("commit", ""),  # checkpoints did not always record it
    }
