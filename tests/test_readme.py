"""Everything that the README shows is run: its commands at tiny sizes, its Python, its shell scripts.

A command that stands in neither RUN nor ELSEWHERE fails here, so that no new one goes untested.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
import shown_commands
from PIL import Image
from shown_commands import REPO
from test_prepare_data import coco, folder, tfrecord  # noqa: F401
from test_prepare_imagenet import imagenet  # noqa: F401

import mcl_jax
from mcl_jax.data.scenes import builder
from mcl_jax.planning import topology

pytestmark = pytest.mark.usefixtures("compile_cache")
SMALL = {
    "data.batch_size": 16,
    "data.image_size": 32,
    "data.canvas_size": 32,
    "data.threads": 1,
    "model.backbone": "resnet10",
    "model.width": 4,
    "model.fpn_channels": 8,
    "model.head_convs": 1,
    "model.projector_hidden": 16,
    "model.projector_out": 8,
    "model.predictor_hidden": 16,
    "montage.levels": 1,
    "optimizer.epochs": 2.0,
    "optimizer.warmup_epochs": 0.5,
    "knn.every_epochs": 0.0,
    "log.montages": 0,
    # and configs/demo.py's recipe for all, so that they share one program
    "data.split": "train[:90%]",
    "loss.temperature": 0.1,
    "augment.area": (0.4, 1.0),
    "optimizer.name": "adamw",
    "optimizer.base_lr": 0.008,
    "optimizer.weight_decay": 0.01,
    "ema.base": 0.9,
    "ema.final": 0.99,
}
FLAGS = [f"--config.{key}={value}" for key, value in SMALL.items()]
FEW_STEPS = [
    *("--set=steps=2", "--set=image_size=32", "--set=head_channels=8", "--set=batch_size=8"),
    *("--set=train_images=0", "--set=eval_images=0"),
]

# What to add to a command; {run}, {photos}, {out} are filled in. The first one makes {run}.
PRETRAIN = (
    "mcl-jax pretrain --config folder --workdir runs/mine "
    "--config.data.dataset=folder:/path/to/images"
)
RUN = {
    PRETRAIN: FLAGS,
    "mcl-jax --help": [],
    "mcl-jax probe --workdir runs/quickstart --output runs/probe --dataset=scenes": [
        *("--data_dir={out}", "--modes=backbone", *FEW_STEPS),
    ],
    "mcl-jax instance-sizes --dataset scenes --output sizes.png": ["--data_dir={out}"],
    "mcl-jax convert runs/mine --to detectron2 --out runs/mine/detectron2": [],
    "mcl-jax plan --config mcl --topology v5e:16x16": [
        *(*FLAGS, "--config.method=byol", "--topology=cpu:8", "--images=64", "--cache="),
    ],
}
# The beginning of a command -> the test that runs it.
ELSEWHERE = {
    "bash scripts/quickstart.sh": "test_readme.py::test_the_quickstart_goes_all_its_way",
    "bash scripts/quickstart.sh FOLDER": "test_readme.py::test_the_quickstart_goes_all_its_way",
    "bash scripts/test.sh": "test_readme.py::test_shell_scripts_install_and_go_on",
    "mcl-jax pretrain --config mcl:c4,loss=b,levels=3": "test_paper_rows.py::"
    "test_a_row_trains_two_finite_steps_on_eight_devices",
    "mcl-jax pretrain --config mcl:supervised,swin_t": "test_paper_rows.py::"
    "test_a_row_trains_two_finite_steps_on_eight_devices",
    "mcl-jax pretrain --config mcl:detco": "test_moco.py::"
    "test_shuffling_changes_a_keys_company_not_its_place",
    "mcl-jax knn": "test_monitor.py::test_the_script_evaluates_a_checkpoint",
    "mcl-jax linear": "test_linear.py::test_the_script_evaluates_a_checkpoint_of_an_older_config",
    "mcl-jax svm": "test_svm_images.py::test_the_script_measures_a_checkpoint_of_an_older_config",
    "mcl-jax visualize": "test_visualize.py::test_sheets_of_own_images",
    "mcl-jax torture": "test_torture.py::test_the_command_runs_chosen_scenarios_and_says_what_survived",
    "mcl-jax study": "test_study.py::test_the_study_runs_on_a_tiny_pack",
    "mcl-jax bench gpu": "test_on_gpu.py::"
    "test_the_script_without_time_skips_every_part_and_says_so",
    "mcl-jax bench step --config mcl --compile-only": "test_scripts.py::"
    "test_bench_step_prints_the_figures_of_both_pyramids",
    "mcl-jax bench step --config mcl --versus-torch": "test_versus.py::"
    "test_both_sides_start_from_the_same_weights_and_montages",
    "mcl-jax prepare": "test_readme.py::test_data_sets_are_prepared",
    "mcl-jax convert resnet50.pth --from torchvision": "test_convert_imports.py::"
    "test_supervised_weights_start_a_run_of_the_base_configuration",
    "mcl-jax convert moco_v2.pth.tar --from torchvision --network encoder_q": "test_convert_weights.py::"
    "test_the_command_wants_one_network",
    "python scripts/pretrain.py": "test_commands.py::test_a_script_is_its_command",
}


def shown():
    return [command.text for command in shown_commands.commands("README.md")]


def test_every_command_of_the_readme_is_run_here_or_elsewhere():
    left = [x for x in shown() if x not in RUN and not any(map(x.startswith, ELSEWHERE))]
    assert not left, "neither in RUN nor in ELSEWHERE"
    stale = [x for x in (*RUN, *ELSEWHERE) if not any(y.startswith(x) for y in shown())]
    assert stale == ["python scripts/pretrain.py"], (
        "no longer in the README"
    )  # its dots are no flag
    for where in ELSEWHERE.values():
        file, _, test = where.partition("::")
        assert f"def {test}(" in (REPO / "tests" / file).read_text(), where


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders by name, {photos} filled with pictures of two classes."""
    root = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for i in range(32):
        path = root / "photos" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(path)
    return {"photos": root / "photos", "run": root / "runs/mine", "out": root / "out"}


def run(text, places, more):
    """The exit code of a command of the README with its paths replaced."""
    replaced = {
        "/path/to/images": places["photos"],
        "runs/mine": places["run"],
        "runs/quickstart": places["run"],
        "runs/probe": places["out"] / "probe",
        "sizes.png": places["out"] / "sizes.png",
    }
    words = shlex.split(text)[1:]
    for old, new in replaced.items():
        words = [word.replace(old, str(new)) for word in words]
    places["out"].mkdir(exist_ok=True)
    return command_line.run(*words, *(word.format(**places) for word in more))


@pytest.fixture(scope="module")
def trained(places):
    assert run(PRETRAIN, places, FLAGS) == 0
    return places


def test_the_same_command_resumes(trained, capsys):
    assert run(PRETRAIN, trained, FLAGS) == 0
    assert "step 2 of 2: nothing left to do" in capsys.readouterr().err
    for name in ("metrics.jsonl", "curves.png", "card.html", "config.json", "checkpoints"):
        assert (trained["run"] / name).exists()


@pytest.mark.parametrize("text", [text for text in RUN if text != PRETRAIN])
def test_a_command_runs(trained, text, capsys, monkeypatch):
    monkeypatch.setattr(builder.Scenes, "split_sizes", {"train": 6, "validation": 4})
    # a process of its own would start its eight devices now
    monkeypatch.setattr(topology, "prepare_process", lambda where: None)
    code = run(text, trained, RUN[text])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert told.out.strip()


def test_python_runs(trained, tmp_path, monkeypatch):
    """On a folder in which the run has been trained already: `pretrain` has nothing left to do."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (REPO / "README.md").read_text(), re.M | re.S)
    load_config = mcl_jax.load_config

    def small(name, batch_size):
        assert load_config(name, batch_size=batch_size).data.batch_size == 32
        return load_config(name, **SMALL | {"data.dataset": f"folder:{trained['photos']}"})

    monkeypatch.setattr(mcl_jax, "load_config", small, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained["run"], "runs/python")
    names = {"images": np.zeros((2, 64, 64, 3), np.uint8)}
    exec(block, names)
    assert {"res2", "res5", "P5"} <= set(names["maps"])
    assert list(Path("runs/python/detectron2").glob("*.pkl"))


def test_data_sets_are_prepared(imagenet, coco, tfrecord, tmp_path, capsys):  # noqa: F811
    version, _ = tfrecord
    given = {
        "imagenet": {**imagenet, "more": ["--partial", "--meta", imagenet["meta"]]},
        "coco": {**coco, "more": ["--partial"]},
        "tfrecord": {"input": version, "more": []},
    }
    commands = [shlex.split(x) for x in shown() if x.startswith("mcl-jax prepare")]
    assert {words[2] for words in commands} == set(given)
    for words in commands:
        files = given[words[2]] | {"data_dir": tmp_path / words[2]}
        pairs = zip(words[3::2], words[4::2], strict=True)
        filled = [part for flag, _ in pairs for part in (flag, files[flag.removeprefix("--")])]
        assert command_line.run(*words[1:3], *filled, *files["more"]) == 0, capsys.readouterr().err
        assert "use it with: --config.data.dataset=tfds:" in capsys.readouterr().out


@pytest.fixture
def quickstart(monkeypatch):
    """scripts/quickstart.py; the processes that it would start run here, at tiny sizes."""
    path = REPO / "scripts/quickstart.py"
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("q", path)
    )
    spec.loader.exec_module(module)
    codes = {}

    def here(command, cwd, check):
        parser, words = shown_commands.as_command("quickstart.py", command)
        assert parser == "mcl-jax" and cwd == REPO and not check
        if words[0] == "pretrain":
            words += [*FLAGS, *(["--stop_after=1"] if "--stop_after=60" in words else [])]
        codes[words[0]] = command_line.run(*words)
        return SimpleNamespace(returncode=codes[words[0]])

    module.subprocess = SimpleNamespace(run=here)
    return module, codes


def test_the_quickstart_goes_all_its_way(quickstart, places, tmp_path, monkeypatch, capsys):
    module, codes = quickstart
    monkeypatch.setattr(
        sys, "argv", ["quickstart.py", str(places["photos"]), "--out", str(tmp_path)]
    )
    try:
        module.main()
    except SystemExit as end:  # of two steps nobody can say that they learned
        assert end.code == codes["summary"] == 1
    told = capsys.readouterr()
    assert codes["pretrain"] == codes["convert"] == 0, told.err
    assert "stopped on request; step 1 is saved" in told.err and "(resumed)" in told.err
    assert "== 4/4 result" in told.out and "checkpoint" in told.out
    assert list((tmp_path / "detectron2").glob("*.pkl"))


MORE = os.sysconf("SC_NPROCESSORS_ONLN") + 1  # than there are cores


@pytest.mark.parametrize(
    "script, given, started",
    [
        ("quickstart.sh", ["photos"], r"\S*/scripts/quickstart\.py photos"),
        (
            "test.sh",
            ["-k", "x"],
            rf"-m pytest -n {MORE} --dist loadfile --no-loadscope-reorder -k x",
        ),
    ],
)
def test_shell_scripts_install_and_go_on(script, given, started, tmp_path):
    """With a Python in .venv that tells what it was asked."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$0 $*" >> "$LOG"\n')
    python.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    for name in (script, "environment.sh"):
        (tmp_path / "scripts" / name).write_text((REPO / "scripts" / name).read_text())
    log = tmp_path / "log"
    environment = os.environ | {"LOG": str(log), "PYTHON": sys.executable}
    command = ["bash", str(tmp_path / "scripts" / script), *given]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    lines = log.read_text().splitlines()
    assert any(re.search(r"-m pip install .*-e \.", line) for line in lines)
    assert re.fullmatch(rf"{re.escape(str(python))} {started}", lines[-1])
