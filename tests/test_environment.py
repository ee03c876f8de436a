"""Environments as they are found: what JAX and matplotlib would stumble over is one line, or nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

from mcl_jax import environment
from mcl_jax.errors import UserError

TESTS = Path(__file__).resolve().parent
DEMO = f"--config={TESTS.parent / 'configs/demo.py'}"
# Everything is imported once; every command is a fork of that, before JAX looks for devices.
FORKS = """
import json, os, sys
import jax, command_line
from mcl_jax import api, program, sharding, train
for place, words in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{place}.txt", os.O_WRONLY | os.O_CREAT), 2)
        code = command_line.run(*words)
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
USES_OF_DEVICES = {
    "pretrain": [DEMO, "--workdir=run"],
    "knn": ["--workdir=fake"],
    "linear": ["--workdir=fake", "--output=out"],
    "svm": ["--workdir=fake", "--dataset=scenes"],
    "probe": ["--workdir=fake", "--output=out", "--dataset=scenes"],
    "visualize": ["fake"],
    "plan": [DEMO, "--topology=gpu"],
    "bench step": [DEMO],
    "bench probe": [DEMO],
}


def test_a_platform_that_is_not_here_is_named_by_every_command(tmp_path):
    (tmp_path / "fake/checkpoints/1/state").mkdir(parents=True)
    commands = [[*name.split(), *words] for name, words in USES_OF_DEVICES.items()]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(commands)],
        env=os.environ | {"JAX_PLATFORMS": "cudaa", "PYTHONPATH": str(TESTS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    told = [(tmp_path / f"{i}.txt").read_text().splitlines() for i in range(len(commands))]
    for name, lines in zip(USES_OF_DEVICES, told, strict=True):
        assert len(lines) == 1, (name, lines)
        assert lines[0].startswith("error: JAX_PLATFORMS is 'cudaa', but there is no such"), name
    assert done.stdout.split() == ["2"] * len(commands)
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".txt"}
    assert left == {"fake"}


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("JAX_ENABLE_X64", "maybe", "$JAX_ENABLE_X64 is 'maybe', which JAX does not take; correct"),
        ("JAX_LOGGING_LEVEL", "x", "$JAX_LOGGING_LEVEL is 'x', which JAX does not take"),
        ("XLA_FLAGS", "--nonsense", "$XLA_FLAGS is '--nonsense': Unknown flag in XLA_FLAGS: --non"),
        ("MPLBACKEND", "nonsense", None),
        ("MPLBACKEND", "module://matplotlib_inline.backend_inline", None),
    ],
)
def test_variables_of_other_libraries(tmp_path, variable, value, error):
    """`mcl-jax` as a notebook starts it, up to where its pictures are drawn."""
    code = (
        "from mcl_jax.commands import main, visualize\n"
        "def draw(options):\n"
        "    import jax, mcl_jax.report.plots as plots, mcl_jax.report.sheets\n"
        "    plots.save(plots.panels(1, 1, (1, 1))[0], 'x.png', dpi=20)\n"
        "visualize.main = draw\n"
        "main.main(['visualize', 'nowhere'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {variable: value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    if error is None:
        assert done.returncode == 0 and (tmp_path / "x.png").is_file(), lines
    else:
        assert done.returncode == 2 and len(lines) == 1, lines
        assert lines[0].startswith(f"error: {error}")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--xla_force_host_platform_device_count=2", None),
        ("--xla_force_host_platform_device_count=x", "Couldn't interpret value x for flag xla_"),
        ("nowhere", 'Could not open file "nowhere" to read flags'),
    ],
)
def test_flags_of_xla_are_tried_where_they_can_do_no_harm(flags, reason):
    told = environment._refusal(flags)
    assert told is None if reason is None else told.startswith(reason)


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    try:
        for words in (["knn", "--workdir=w"], ["summary", "w"], ["pretrain", "--config=demo"]):
            assert command_line.run(*words) == 2
            assert capsys.readouterr().err == (
                "error: the current folder cannot be used (No such file or directory); change to "
                "another one\n"
            )
    finally:
        os.chdir(tmp_path)


def test_what_is_not_about_the_environment_is_none_of_its_mistakes(monkeypatch):
    assert (
        environment.mistake(ValueError("invalid truth value 'x' for environment 'JAX_X'")) is None
    )
    assert environment.mistake(ValueError("another")) is environment.mistake(KeyError(1)) is None
    with pytest.raises(UserError):
        monkeypatch.setattr(os, "getcwd", lambda: os.stat("/nowhere"))
        environment.prepare(compiles=False)
