"""What a project has at hand: image, citation, hooks, notebook, pages of the API."""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import mcl_jax

REPO = Path(__file__).resolve().parent.parent
SETUP = ConfigParser()
SETUP.read(REPO / "setup.cfg")
TINY = {
    "batch_size": 16,
    "epochs": 0.5,
    "warmup_epochs": 0.0,
    "data.image_size": 32,
    "canvas_size": 32,
    "data.threads": 1,
    "backbone": "resnet10",
    "width": 4,
    "fpn_channels": 8,
    "projector_hidden": 16,
    "projector_out": 8,
    "predictor_hidden": 16,
    "levels": 1,
    "every_steps": 1,
    "montages": 2,
}


def tool(name, *arguments):
    return subprocess.run(
        [Path(sys.executable).with_name(name), *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_image_holds_what_is_installed_and_is_linted():
    done = tool("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout
    text = (REPO / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()}
    folders = {
        part.partition("=")[2].strip() for part in SETUP["options"]["package_dir"].split("\n")
    }
    assert copied == {
        *("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "NOTICE"),
        *(folders - {""}),
    }
    let_in = (REPO / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in let_in if line.startswith("!")} == copied
    assert all((REPO / name).exists() for name in copied)
    extras = {*SETUP["options.extras_require"]}
    for given in re.findall(r"EXTRAS=(\S+?);?(?:\s|$)", text):
        assert "gcs" in given.split(",") and {*given.split(",")} <= extras, given


def test_the_hooks_are_those_of_ci_at_the_same_versions():
    (own,) = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    needed = {x for hook in own["hooks"] for x in hook["additional_dependencies"]}
    assert needed <= set(SETUP["options.extras_require"]["test"].split())
    assert {"ruff check --fix", "ruff format"} <= {hook["entry"] for hook in own["hooks"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["version"] == mcl_jax.__version__ and citation["cff-version"] == "1.2.0"
    (method,) = citation["references"]
    assert method["title"].startswith("Multi-Level Contrastive") and len(method["authors"]) == 6
    assert "Cityscapes" in (REPO / "NOTICE").read_text()


def test_the_notebook_runs_from_a_folder_to_an_export(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(32):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
        picture.save(tmp_path / f"photos/{i:02}.jpg")
    notebook = json.loads((REPO / "docs/quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names["SETTINGS"] |= TINY
    out = capsys.readouterr().out
    assert "step 1" in out and "FrozenNetwork(mcl, resnet10, step 1" in out
    assert list((tmp_path / "runs/notebook/detectron2").glob("*.pkl"))
    assert (tmp_path / "runs/notebook/montage.png").is_file()


def test_pages_of_the_api_are_made(tmp_path):
    text = (REPO / "docs/python.md").read_text()
    command = re.search(r"^python -m (pdoc .*)$", text, re.M)[1].split()
    command[command.index("docs/api")] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "mcl_jax/api.html").read_text()
    assert all(f'id="{name}"' in page for name in ("load_config", "pretrain", "load", "export"))
    assert (tmp_path / "mcl_jax/evaluate/frozen.html").is_file()
