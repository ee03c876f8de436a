"""report.json for programs and report.txt for people: what was converted, what was not and why.

Shapes: those of the written arrays.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def tensor(name: str, source: str, array: np.ndarray) -> dict[str, Any]:
    """A row of the report; `norm` is the Euclidean norm in float64."""
    return {
        "name": name,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": float(np.linalg.norm(array.astype(np.float64))),
        "source": source,
    }


def left_out(source: str, arrays: Sequence[np.ndarray], reason: str) -> dict[str, Any]:
    """A group of arrays that was not converted."""
    values = sum(array.size for array in arrays)
    return {"source": source, "tensors": len(arrays), "values": values, "reason": reason}


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes both reports into an existing folder."""
    machine = json.dumps(content, indent=1, allow_nan=False)
    (folder / "report.json").write_text(machine + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(_text(content), encoding="utf-8")


def _text(content: Mapping[str, Any]) -> str:
    rows = content["tensors"]
    values = sum(int(np.prod(row["shape"])) for row in rows)
    lines = [
        f"{content['checkpoint']} (step {content['step']}, {content['backbone']}) -> "
        f"{content['file']} ({content['target']})",
        f"sha256 {content['sha256']}",
        f"{len(rows)} tensors, {values:,} values; re-read from the file: equal bit by bit",
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
