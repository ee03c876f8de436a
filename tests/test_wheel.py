"""The installed package: everything under mcl_jax, whatever lies in the current folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD_RUN = ROOT / "tests" / "data" / "run_0.1.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip builds it, from a copy: building leaves files in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "mcl_jax", "convert", "configs", "*.cfg", "*.toml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in (*listed, "README.md", "LICENSE", "NOTICE", "mcl_jax/py.typed"):
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, sources)
    (path,) = folder.glob("*.whl")
    return path


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def test_a_wheel_has_one_name_and_all_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mcl_jax"}
    assert "mcl_jax/py.typed" in names
    for folder, pattern in (("detectron2", "*.yaml"), ("openmmlab", "*.py")):
        for path in (ROOT / "configs" / folder).glob(pattern):
            assert f"mcl_jax/configs/{folder}/{path.name}" in names


def test_it_works_beside_files_of_the_same_names(wheel, tmp_path):
    bare, hostile = tmp_path / "bare", tmp_path / "hostile"
    pip("install", "--no-deps", "--target", bare, wheel)
    (hostile / "configs").mkdir(parents=True)
    for name in ("configs/__init__.py", "configs/base.py", "convert.py", "scripts.py"):
        (hostile / name).write_text("raise SystemExit('the wrong file was imported')\n")
    code = f"""
import mcl_jax
from mcl_jax.configs import mcl
from mcl_jax.convert.command import main
assert mcl_jax.__file__.startswith({str(bare)!r}), mcl_jax.__file__
assert mcl.__file__.startswith({str(bare)!r}), mcl.__file__
assert mcl.get_config("c4").model.neck == "c4"
main([{str(OLD_RUN)!r}, "--to", "detectron2", "--out", "out"])
assert mcl_jax.load({str(OLD_RUN)!r}).names[-1] == "P5"
assert mcl_jax.load_config("demo").data.dataset == "scenes"
"""
    environment = os.environ | {"PYTHONPATH": str(bare), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=hostile, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (hostile / "out" / "report.txt").is_file()
    command = [sys.executable, bare / "bin/mcl-jax", "pretrain", "--config", "demo"]
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --workdir FOLDER is missing")
