"""What a fine-tuning in Detectron2 needs of its environment: packages, Python, Detectron2."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcl_jax.convert.finetuning import (
    packages,
)
from mcl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
KIT = ROOT / "configs" / "detectron2"
FPN, C4, RETINANET = (
    KIT / f"coco_{name}.yaml" for name in ("mask_rcnn_fpn_1x", "mask_rcnn_c4_1x", "retinanet_1x")
)
SCRIPT = ROOT / "scripts" / "finetune_detectron2.py"


def test_packages_that_an_evaluator_cannot_use_are_found_before_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "oldmeasure").mkdir()
    (tmp_path / "oldmeasure" / "__init__.py").write_text(
        "import numpy as np\ndef run():\n    return np.zeros(3, np.float), np.float32, np.asarray\n"
    )
    evaluator = tmp_path / "evaluator.py"
    evaluator.write_text("def evaluate():\n    import oldmeasure\n    return oldmeasure.run()\n")
    packages.demand_imports(evaluator, "oldmeasure", "x cannot be evaluated")
    with pytest.raises(
        UserError, match=r"^x cannot be evaluated: oldmeasure uses np.float \(__init__"
    ):
        packages.demand_numpy(evaluator, "oldmeasure", "x cannot be evaluated")
    evaluator.write_text(
        "try:\n    import not_there_1\nexcept ImportError:\n    pass\n"
        "def evaluate():\n    from not_there_2.deep import x\n"
    )
    for package, missing in ((None, "not_there_2"), ("not_there_3", "not_there_3")):
        words = f"^x cannot be evaluated: {missing} is not installed; install it"
        with pytest.raises(UserError, match=words):
            packages.demand_imports(evaluator, package, "x cannot be evaluated")
    assert "numpy<1.24" in packages.advice("lvis")


def test_the_public_cityscapesscripts_stand_in_for_those_that_are_not(tmp_path, monkeypatch):
    for name in packages.MODULES:
        path = tmp_path / packages.PUBLIC / name.replace(".", "/")
        (path.parent if "." in name else path).mkdir(parents=True, exist_ok=True)
        (path.with_suffix(".py") if "." in name else path / "__init__.py").write_text(
            f"me = {name!r}"
        )
    (tmp_path / packages.PUBLIC / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    try:
        packages.lend_public_names()
        source = tmp_path / "evaluator.py"
        source.write_text(
            f"import {packages.PRIVATE}.evaluation.evalPixelLevelSemanticLabeling as own\n"
            f"from {packages.PRIVATE}.helpers.labels import me\n"
        )
        found = runpy.run_path(str(source))
        assert found["own"].me == "evaluation.evalPixelLevelSemanticLabeling"
        assert found["me"] == "helpers.labels"
        packages.demand_imports(source, packages.PUBLIC, "x")
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_an_old_python_gets_one_line(monkeypatch, capsys):
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.endswith("is too old, 3.9 is needed\n")


def test_the_modules_of_the_script_are_for_python_39(tmp_path):
    """Their syntax, and annotations that are never evaluated."""
    code = (
        "import sys; sys.argv = ['x', '--help'];"
        "sys.modules.update(dict.fromkeys(('jax', 'flax', 'torch', 'ml_collections', 'absl')));"
        f"sys.path.insert(0, {str(ROOT)!r});"
        "from mcl_jax.convert.finetuning import command, task;"
        "files = [str(getattr(m, '__file__', None)) for m in list(sys.modules.values())];"
        f"print('\\n'.join(x for x in files if x.startswith({str(ROOT)!r}) and '.venv' not in x))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(paths) > 12
    for path in paths:
        text = path.read_text()
        ast.parse(text, feature_version=(3, 9))
        lazy = "from __future__ import annotations" in text
        assert lazy or " | None" not in text, path


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((ROOT / "README.md", "--control", "random"), "README.md is not YAML"),
        ((FPN, "--control", "random"), "Detectron2 is not installed"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert done.stderr.startswith("error: ")


def test_counts_that_are_no_python_ints_are_found(monkeypatch):
    monkeypatch.setattr(np, "count_nonzero", lambda x: 1)
    packages.demand_plain_counts("x")
    monkeypatch.setattr(np, "count_nonzero", lambda x: np.int64(1))
    with pytest.raises(
        UserError, match="^x: cityscapesscripts.* no longer gives a Python int; pip"
    ):
        packages.demand_plain_counts("x")
