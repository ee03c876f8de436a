"""report.json for programs and report.txt for people: what was converted, what was not and why.

Shapes: those of the written arrays.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.convert.names.layouts import networks
from mcl_jax.runtime.storage import Place


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that is exported.

    Attributes:
      state: nested dicts of arrays with the fields of TrainState.
      meta: as `mcl_jax.runtime.checkpoint.read` returns it.
      source: what the user called the checkpoint.
      changes: what was done to the state since it was read, in words.
      workdir: of the run, whose curves and montage the card shows.
    """

    state: Mapping[str, Any]
    meta: Mapping[str, Any]
    source: str = "a state"
    changes: tuple[str, ...] = ()
    workdir: Place | None = None


def tensor(name: str, source: str, array: np.ndarray) -> dict[str, Any]:
    """A row of the report; `norm` is the Euclidean norm in float64."""
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": float(np.linalg.norm(array.astype(np.float64))),
        "source": source,
    }


# Part of a checkpoint -> why it stays behind, where a target does not take it.
REASONS = {
    "projector": "projector: pre-training only",
    "predictor": "predictors: pre-training only",
    "target_params": "target network: the online network is the one that is transferred",
    "target_batch_stats": "target network: the online network is the one that is transferred",
    "classifier": "classifier of the pre-training's labels",
}


def left_out(arrays: Mapping[str, np.ndarray], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Groups of everything that was not converted.

    Args:
      arrays: source -> array of what stayed behind.
      reasons: by part of the checkpoint, before REASONS; other parts are 'pre-training only'.
    """
    groups: dict[str, list[np.ndarray]] = {}
    for source, array in arrays.items():
        root, *parts = source.split("/")
        depth = 0 if root.startswith("target_") else 2 if parts[0] == "encoder" else 1
        groups.setdefault("/".join([root, *parts[:depth]]), []).append(array)
    explanations = REASONS | dict(reasons)
    rows = [
        {
            "source": f"{group}/",
            "tensors": len(members),
            "values": sum(array.size for array in members),
            "reason": explanations.get(group.rsplit("/", 1)[-1], "pre-training only"),
        }
        for group, members in groups.items()
    ]
    return [*rows, {"source": "opt_state, memory", "reason": "training state: not weights"}]


def describe(
    target: str,
    snapshot: Snapshot,
    *,
    model: Mapping[str, np.ndarray],
    sources: Mapping[str, str],
    notes: Sequence[str],
    models: Mapping[str, Mapping[str, str]],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """A report, but for the written file's name and checksum.

    Args:
      target: what `--to` calls it.
      snapshot: what was exported.
      model: the target's name -> written array, any shape.
      sources: the target's name -> path in the state; what no name leads to is listed as left out.
      notes: what the user has to know beside the changes, in words.
      models: model of the target -> its 'loads' and 'from_scratch', in words.
      reasons: see `left_out`.
    """
    exported = set(sources.values())
    rest = {path: x for path, x in networks(snapshot.state).items() if path not in exported}
    return {
        "target": target,
        "checkpoint": snapshot.source,
        "step": int(snapshot.meta["step"]),
        "backbone": snapshot.meta["config"]["model"]["backbone"],
        "notes": [*snapshot.changes, *notes],
        "models": models,
        "tensors": [tensor(name, sources[name], x) for name, x in model.items()],
        "left_out": left_out(rest, reasons),
    }


def write(folder: Path, content: Mapping[str, Any], stem: str = "report") -> None:
    """Writes both reports, STEM.json and STEM.txt, into an existing folder."""
    machine = json.dumps(content, indent=1, allow_nan=False)
    (folder / f"{stem}.json").write_text(machine + "\n", encoding="utf-8")
    (folder / f"{stem}.txt").write_text(_text(content), encoding="utf-8")


def _worst(errors: Mapping[str, float]) -> str:
    name = max(errors, key=errors.get)
    return f"{errors[name]:.1e} of the largest value ({name}, the worst of {', '.join(errors)})"


def _text(content: Mapping[str, Any]) -> str:
    rows = content["tensors"]
    values = sum(int(np.prod(row["shape"])) for row in rows)
    lines = [
        f"{content['checkpoint']} (step {content['step']}, {content['backbone']}) -> "
        f"{content['file']} ({content['target']})",
        f"sha256 {content['sha256']}",
        f"{len(rows)} tensors, {values:,} values; re-read from the file: equal bit by bit",
        f"run on a fixed image from the file: equal to {_worst(content['self_check'])}",
        *(f"NOTE: {note}" for note in content["notes"]),
        "",
        "Loads into",
    ]
    for model, part in content["models"].items():
        lines.append(f"  {model}: {part['loads']}; from scratch: {part['from_scratch']}")
    lines += ["", "Left out"]
    for part in content["left_out"]:
        count = f" ({part['tensors']} tensors)" if "tensors" in part else ""
        lines.append(f"  {part['source']}{count}: {part['reason']}")
    cells = [
        (row["name"], str(tuple(row["shape"])), row["dtype"], f"{row['norm']:.6g}", row["source"])
        for row in rows
    ]
    header = ("name", "shape", "dtype", "norm", "source")
    widths = [max(len(row[i]) for row in (header, *cells)) for i in range(len(header))]
    lines.append("")
    for row in (header, *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"
