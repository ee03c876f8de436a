"""card.html of an export: the report, and the run behind it, for people.

Shapes: none; see mcl_jax/report/card.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcl_jax.report import card, metrics


def text(
    content: Mapping[str, Any], config: Mapping[str, Any], commit: str, workdir: Path | None
) -> str:
    """The page.

    Args:
      content: the report, as convert.checks.report.write takes it.
      config: of the run; one without all sections (tests, old checkpoints) shows the export alone.
      commit: of the code that trained it, '' if unknown.
      workdir: of the run, for its curves and montage; None: unknown.
    """
    parts = _sections(content, commit)
    if {"data", "optimizer", "seed"} <= set(config):
        lines = metrics.read(workdir) if workdir else []
        parts += card.run_parts(config, content["step"], lines=lines, workdir=workdir)
    title = f"{config.get('method', 'mcl')} {content['backbone']} for {content['target']}"
    return card.page(title, "weights exported by mcl_jax", parts)


def _sections(content: Mapping[str, Any], commit: str) -> list[str]:
    """What the page says of the export itself."""
    worst = max(content["self_check"].values())
    values = sum(math.prod(row["shape"]) for row in content["tensors"])
    origin = [
        ("file", content["file"]),
        ("sha256", content["sha256"]),
        ("from", f"{content['checkpoint']}, step {content['step']:,}"),
        ("code", commit or "unknown commit"),
    ]
    models = [(name, x["loads"], x["from_scratch"]) for name, x in content["models"].items()]
    errors = [(name, f"{error:.1e}") for name, error in content["self_check"].items()]
    rest = [(x["source"], str(x.get("tensors", "")), x["reason"]) for x in content["left_out"]]
    return [
        card.figures(
            {
                "arrays": f"{len(content['tensors']):,}",
                "values": f"{values / 1e6:,.1f} M",
                "largest difference in the self-check": f"{worst:.1e}",
            }
        ),
        *(card.note(note) for note in content["notes"]),
        card.section("File", card.table(origin)),
        card.section("Loads into", card.table(models, ("model", "takes", "from scratch"))),
        card.section(
            "Checks",
            card.table([("re-read from the file", "equal bit by bit, to the checkpoint too")]),
            card.table(
                errors, ("map on a fixed image", "difference, as a share of the largest value")
            ),
        ),
        card.section("Left out", card.table(rest, ("part of the checkpoint", "arrays", "why"))),
        card.section("Arrays", card.folded("All arrays", _tensors(content["tensors"]))),
    ]


def _tensors(rows: list[Mapping[str, Any]]) -> str:
    header = ("name", "shape", "norm", "source")
    cells = (
        (row["name"], "x".join(map(str, row["shape"])), f"{row['norm']:.6g}", row["source"])
        for row in rows
    )
    return card.table(cells, header)
