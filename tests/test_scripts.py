"""The benches and the summary run on any config and say what a user did wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK_COMPILE, tiny_config

from mcl_jax.report import metrics
from mcl_jax.runtime import compile_cache

REPO = Path(__file__).resolve().parent.parent
SMALL = [
    "--config.data.batch_size=16",
    "--config.data.image_size=32",
    "--config.data.canvas_size=32",
    "--config.model.backbone=resnet10",
    "--config.model.head_convs=1",
    "--config.model.width=4",
    "--config.model.fpn_channels=8",
    "--config.montage.levels=2",
]

TINY = REPO / "tests/tiny_script.py"  # runs a script with the tests' smallest networks
STAGES = ("decode + eight", "decode to")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compile cache: the two uses of bench_step share the assigned program."""
    return compile_cache.variables(tmp_path_factory.mktemp("cache"))


def script(name, *arguments, environment=None):
    return subprocess.run(
        [sys.executable, REPO / "scripts" / name, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILE} | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_bench_step_prints_the_figures_of_both_pyramids(tmp_path, cache):
    path = tmp_path / "figures.json"
    config = f"--config={REPO / 'configs/demo.py'}"
    flags = ["--compile-only", f"--json={path}"]
    done = script(TINY, "bench_step.py", config, *SMALL, *flags, environment=cache)
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert json.loads(done.stdout) == figures
    for pyramid in ("assigned", "full"):
        assert figures[pyramid]["flops"] > 1e6 and figures[pyramid]["peak_bytes"] > 1e5
        assert figures[pyramid]["bytes"] > 1e6 and "collectives" in figures[pyramid]
    assert figures["flops_ratio"] > 1.2  # two levels; four at R50 are in the README


def test_bench_step_times_a_config(cache):
    config = f"--config={REPO / 'configs/demo.py'}"
    flags = ["--steps=2", "--profile=1"]
    done = script(TINY, "bench_step.py", config, *SMALL, *flags, environment=cache)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["images_per_s"] == pytest.approx(16 / result["seconds_per_step"])
    assert result["mfu"] is None and result["flops_per_s_per_device"] > 0
    assert result["needed_flops"] > 0 and result["device"] == "cpu"
    longest = result["profile"]["operations"]
    assert len(longest) == 10 and longest[0]["name"] in done.stderr
    assert any("train_step" in row["source"] for row in longest)


def test_bench_data_measures_a_configs_own_data(tmp_path):
    import cv2
    import numpy as np

    for i in range(4):
        picture = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), picture)
    config = [f"--config={REPO / 'configs/demo.py'}", f"--config.data.dataset=folder:{tmp_path}"]
    config += ["--config.data.batch_size=4", "--seconds=0.1"]
    done = script("bench_data.py", *config, "--pipelines=0,1", f"--json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    rows = result["rows"]
    views, canvas = ([row for row in rows if row["stage"].startswith(s)] for s in STAGES)
    assert result["ratio"] == views[0]["cpu_ms_per_image"] / canvas[0]["cpu_ms_per_image"]
    assert len(rows) >= 4 and str(tmp_path) in done.stdout
    wrong = script("bench_data.py", *config, "--pipelines=two")
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].startswith("error: --pipelines 'two' is not")


@pytest.mark.parametrize("flags", [[], ["--config=configs/dmo.py"], ["--config=demo", "stray"]])
def test_a_config_that_is_not_there_is_one_line(flags, tmp_path):
    done = script("pretrain.py", *flags, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("last, code", [(1.0, 0), (3.0, 1)])
def test_summary_says_whether_the_run_learned(tmp_path, last, code):
    writer = metrics.MetricWriter(tmp_path, 0, enabled=True)
    for step, loss in ((1, 2.0), (2, last)):
        writer.write(step, {"loss": loss, "top1/level0": 0.1, "knn": step / 10})
    writer.close()
    done = script("summary.py", tmp_path)
    assert done.returncode == code
    assert f"loss       2.000 -> {last:.3f}" in done.stdout and "10.0% untrained" in done.stdout


def test_every_config_file_builds():
    from importlib import import_module

    from mcl_jax import program

    names = [path.stem for path in (REPO / "configs").glob("*.py") if path.stem != "__init__"]
    assert len(names) >= 5
    keys = set(tiny_config().to_dict())
    for name in names:
        config = import_module(f"mcl_jax.configs.{name}").get_config()
        assert set(config.to_dict()) - {"study"} == keys
        assert program.make_objective(config, 64, None).counts[0] == 64


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("pretrain.py", ["--config", f"{REPO}/configs/mcl.py:detko"], "unknown word 'detko'"),
        ("compare_methods.py", ["--config", f"{REPO}/configs/demo.py"], "no section 'study'"),
        ("knn.py", ["--workdir", "/nowhere"], "/nowhere' does not exist"),
        ("linear_eval.py", ["--workdir", "/nowhere"], "--output FOLDER is missing"),
        ("instance_sizes.py", ["--dataset", "scene"], "unknown data set 'scene'"),
    ],
)
def test_a_scripts_mistakes_are_one_line(tmp_path, name, arguments, message):
    done = script(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
