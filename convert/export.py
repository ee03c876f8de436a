"""One frame for all exports: weights, the target's own files, report and checks, all or nothing.

Shapes: those of a target's view.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcl_jax.convert import transform
from mcl_jax.convert.checks import forward, model_card, report, selfcheck
from mcl_jax.convert.files import folder
from mcl_jax.convert.files import formats as files
from mcl_jax.convert.files.formats import Format
from mcl_jax.convert.names import architectures
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.views import View
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.report import card
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place


@dataclass(frozen=True)
class Job:
    """What is exported.

    Attributes:
      state: nested dicts of arrays with the fields of TrainState.
      meta: of the checkpoint, as `mcl_jax.runtime.checkpoint.read` returns it.
      parts: which of architectures.PARTS.
      folded: whether FPN and head absorb their norms, see transform.fold.
      changes: what was done to the weights before, in words.
      weights: where the user will find the file of weights.
    """

    state: Mapping[str, Any]
    meta: Mapping[str, Any]
    parts: tuple[str, ...]
    folded: bool
    changes: tuple[str, ...]
    weights: Place

    @property
    def config(self) -> Mapping[str, Any]:
        return self.meta["config"]

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
      view: what the file holds.
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
    demand: Callable[[Job], None]
    view: Callable[[Job], View]
    files: Callable[[Job], dict[str, str]]
    notes: Callable[[Job], list[str]]
    models: Callable[[Job], dict[str, dict[str, str]]]
    reasons: Callable[[Job], dict[str, str]]


def chosen_parts(target: Target, given: str | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    """`--parts` as some of architectures.PARTS; 'all' is all that target and run have.

    Raises:
      UserError: for a word that is no part, and for a part that target or run do not have.
    """
    trained = [part for part in architectures.detector_parts(config) if part in target.parts]
    if given is None:
        given = target.default
    if given == "all":
        return tuple(trained)
    words = given.split(",")
    for word in words:
        if word not in PARTS:
            raise UserError(f"--parts {given}: {word!r} is not one of {', '.join(PARTS)}, or all")
        if word not in target.parts:
            raise UserError(
                f"--parts {given}: --to {target.name} has no {word}, only {', '.join(target.parts)}"
            )
        if word not in trained:
            raise UserError(
                f"--parts {given}: this run pre-trained no {word} that a detector could load, "
                f"only {', '.join(trained)}"
            )
    return tuple(part for part in PARTS if part in words)


def export(
    target: Target,
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    out: Place,
    parts: str | None = None,
    folded: bool = False,
    changes: Sequence[str] = (),
    workdir: Place | None = None,
) -> list[Place]:
    """Writes weights, the target's own files, report.json, report.txt and card.html into `out`.

    The written weights are read back, compared with the checkpoint array by array, and run on a
    fixed image (convert/checks/selfcheck.py), before anything appears in `out`; see `folder.write`.

    Args:
      target: one of convert.targets.
      state, meta: what `mcl_jax.runtime.checkpoint.read` returns.
      source: what the user called the checkpoint, for the report.
      out: folder.
      parts: see `chosen_parts`.
      folded: see transform.fold.
      changes: what was done to `state` before, in words.
      workdir: of the run, whose curves and montage the card shows.

    Returns:
      The written files.

    Raises:
      UserError: for a network that the target does not have, a library that is not installed, an
        array that is missing, unexpected, misshapen or not finite, and a failed check.
    """
    a = architectures.from_config(meta["config"])
    taken = chosen_parts(target, parts, meta["config"])
    weights = f"mcl_{target.stem(a, taken)}{target.format.suffix}"
    given = state
    job = Job(state, meta, taken, folded, tuple(changes), storage.absolute(out) / weights)
    target.demand(job)
    target.format.check()  # last: what cannot be asked for needs no library
    subject = f"the checkpoint does not hold the {a.backbone} that its configuration names"
    if folded:
        # whatever is wrong, by its own name
        target.view(replace(job, folded=False)).to_file(state, subject)
        state = transform.fold(state, taken, forward.EPSILON)
        note = "FPN and head: norms folded into kernels and biases; this cannot be undone"
        job = replace(job, state=state, changes=(*job.changes, note))
    view = target.view(job)
    model = view.to_file(state, subject)

    def fill(temporary: Path) -> None:
        path = temporary / weights
        target.format.write(path, model, about(meta))
        read = target.format.read(path)
        folder.demand_equal(read, model, path.name)
        view.demand_same(read, state)
        errors = selfcheck.check(read, view, given, a, taken, meta["config"])
        for name, text in target.files(job).items():
            (temporary / name).write_text(text, encoding="utf-8")
        content = report.describe(
            target.name,
            state,
            meta,
            source,
            model,
            view.sources,
            notes=[*job.changes, *target.notes(job)],
            models=target.models(job),
            reasons=target.reasons(job),
        )
        content |= {"file": weights, "self_check": errors}
        content |= {"sha256": files.sha256(path)}
        report.write(temporary, content)
        page = model_card.text(content, meta["config"], meta.get("commit", ""), workdir)
        card.write(temporary / card.FILE, page)

    return folder.write(out, fill)


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
