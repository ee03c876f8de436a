"""Two platforms' losses next to each other, and the figures that docs/gpu.md gives of a GPU."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config
from stand_in_backbone import use_stand_in_backbone

from mcl_jax import program
from mcl_jax.bench import parity
from mcl_jax.planning.topology import CHIPS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_parity_compares_the_losses_of_real_batches(monkeypatch):
    use_stand_in_backbone(monkeypatch)
    config = program.plain_config(tiny_config())
    config["data"] |= {"batch_size": 32, "image_size": 32, "canvas_size": 32}
    config["model"] |= {"neck": "c4", "head_convs": 1}
    config["montage"]["levels"] = 1
    results = {}
    for dtype in parity.TOLERANCES:
        config["numerics"]["compute_dtype"] = dtype
        with jax.enable_x64(dtype == "float64"):
            results[dtype] = parity.steps(config, 2)
    assert {result["device"] for result in results.values()} == {"cpu"}
    assert all(np.isfinite(result["losses"]).all() for result in results.values())
    legs = {leg: results[leg.split()[1]] for leg in parity.LEGS}
    same = parity.compare(legs)
    assert same["equal"] and same["float64"]["equal"] and same["largest_loss_difference"] == 0
    # the same views and weights: what is left is float32's rounding
    assert (
        0 < max(same["errors"]["cpu"]) < 1e-5
        and same["errors"]["accelerator"] == same["errors"]["cpu"]
    )
    for leg, name in (
        ("accelerator float32", "largest_loss_difference"),
        ("accelerator float64", "float64"),
    ):
        losses = [x * 1.001 for x in legs[leg]["losses"]]
        other = parity.compare({**legs, leg: legs[leg] | {"losses": losses}})
        apart = other if name != "float64" else other["float64"]
        assert not apart["equal"] and apart["largest_loss_difference"] == pytest.approx(1e-3)
    wide = parity.small(config, "float64")
    assert wide.keys() == config.keys() and wide["numerics"]["compute_dtype"] == "float64"
    for section, values in parity.SMALL.items():
        assert values.keys() <= config[section].keys()
        assert values.items() <= wide[section].items()


def test_the_documents_figures_of_the_gpu_are_the_measured_ones():
    records = {
        name: json.loads((DOCS / f"gpu/h200-{name}.json").read_text())
        for name in ("pretrain", "parity", "loader")
    }
    assert {(r["device"], r["status"]) for r in records.values()} == {("NVIDIA H200", "done")}
    run, same, loader = (record["result"] for record in records.values())
    rate, needed = run["images_per_s"], 8.88e10  # FLOPs an image, see `bench.step.needed_flops`
    figures = {
        "images/s of": f"**{rate:,.0f}**",
        "`mfu`": f"**{rate * needed / CHIPS['h200'].flops:.1%}**".replace("%", " %"),
        "compilations after": f"{len(run['resumed']['compiled_after_first_step'])}, also after",
        "loader on": f"{loader['images_per_s']:,.0f} images/s, {loader['images_per_s'] / rate:.1f}",
        "kill -9 at": f"{len(run['losses'])} steps, each logged once",
        "first step after": f"{run['first_step_s']:.0f} s; {run['resumed_first_step_s']:.0f} s with",
        "float32 losses": f"{same['largest_loss_difference']:.1e}".replace("e-0", "e-"),
    }
    text = (DOCS / "gpu.md").read_text()
    rows = text.partition("## Measured: one H200")[2].partition("\n- ")[0].splitlines()
    for name, figure in figures.items():
        (row,) = [row for row in rows if row.startswith(f"| {name}")]
        assert figure in row, (row, figure)
    assert run["complete"] and run["cold"]["compiled_after_first_step"] == []
    assert f"at step {run['killed_at']}, resumed from {run['resumed_from']}" in text
    assert f"up to {run['largest_loss_difference']:.1e}".replace("e-0", "e-") in text
    readme = (DOCS.parent / "README.md").read_text()
    assert f"{rate:,.0f} images/s" in readme
