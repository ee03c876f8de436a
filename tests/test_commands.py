"""mcl-jax: one command, its help, its exit codes, its completion; the scripts are the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import command_line
import pytest

from mcl_jax import exit_codes
from mcl_jax.commands import completion, main, registry, words
from mcl_jax.configs import path_of
from mcl_jax.errors import UserError

REPO = Path(__file__).resolve().parent.parent
DOCUMENT = (REPO / "docs/commands.md").read_text()
SCRIPTS = {
    "pretrain": "pretrain", "knn": "knn", "linear": "linear_eval", "svm": "linear_svm",
    "probe": "probe_detection", "visualize": "visualize", "plan": "plan_pod",
    "study": "compare_methods", "prepare": "prepare_data", "summary": "summary",
    "bench data": "bench_data", "bench step": "bench_step", "bench gpu": "on_gpu",
    "bench probe": "bench_probe", "bench start": "bench_start",
    "torture": "torture", "instance-sizes": "instance_sizes", "coco-subset": "coco_subset",
}  # fmt: skip


@pytest.fixture(autouse=True)
def forget_flags():
    yield
    command_line.forget()


def run(code, *arguments, **environment):
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def ended(capsys, *arguments):
    """(exit code, stdout, stderr) of a command line, in this process."""
    code = command_line.run(*arguments)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_help_and_the_document_name_every_command_and_exit_code(capsys):
    code, out, _ = ended(capsys, "--help")
    assert code == 0
    flat = " ".join(out.split())
    for command in registry.COMMANDS:
        assert f"{command.name} {command.summary}" in flat
        assert f"| `mcl-jax {command.name}` | {command.summary} |" in DOCUMENT
    for number, meaning in exit_codes.MEANINGS.items():
        assert f"{number} {meaning}" in flat and f"| {number} | {meaning} |" in DOCUMENT
    assert max(map(len, out.splitlines())) <= words.WIDTH
    named = {x for x, y in vars(exit_codes).items() if isinstance(y, int)}
    assert {getattr(exit_codes, name) for name in named} == exit_codes.MEANINGS.keys()


HELP_OF_ALL = """
import contextlib, io, sys
from absl import flags
from mcl_jax.commands import main, registry
for command in registry.COMMANDS:
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        for flag in list(defined) if module.startswith("mcl_jax.") else ():
            delattr(flags.FLAGS, flag.name)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        try:
            main.main([*command.name.split(), "--help"])
        except SystemExit as end:
            assert not end.code, command
    text = told.getvalue()
    assert text.startswith(f"usage: mcl-jax {command.name}"), text
    assert "--" in text and "scripts/" not in text, text
assert not {"jax", "numpy", "matplotlib", "cv2"} & set(sys.modules), "help imports too much"
"""


def test_help_of_every_command_needs_no_jax():
    done = run(HELP_OF_ALL)
    assert done.returncode == 0, done.stdout + done.stderr


QUICK = """
import sys, resource
{}
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, "jax" in sys.modules, "absl" in sys.modules)
"""


@pytest.mark.parametrize(
    "code",
    [
        "import mcl_jax",
        "from mcl_jax.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_import_and_help_take_less_than_three_tenths_of_a_second(code):
    done = run(QUICK.format(code))
    seconds, *loaded = done.stdout.splitlines()[-1].split()
    assert float(seconds) <= 0.3 and loaded == ["False", "False"], done.stdout + done.stderr


@pytest.mark.parametrize(
    "line, message",
    [
        ("pretrian", "no command 'pretrian'; did you mean 'pretrain'?"),
        ("visualise runs/x", "no command 'visualise'; did you mean 'visualize'?"),
        ("instance_sizes", "no command 'instance_sizes'; did you mean 'instance-sizes'?"),
        ("zzz", "no command 'zzz'; mcl-jax --help lists the commands there are"),
        ("bench", "mcl-jax bench is one of step, start, data, probe, gpu; say which"),
        ("bench stp", "mcl-jax bench is one of step, start, data, probe, gpu; say which"),
        ("knn --nope=1", "Unknown command line flag 'nope'"),
        ("pretrain --config dmo --workdir x", "no configuration 'dmo'; did you mean 'demo'?"),
        ("coco-subset", "the following arguments are required: annotations"),
        ("convert x --to detectron3 --out y", "argument --to: invalid choice: 'detectron3'"),
        ("summary nowhere", "workdir 'nowhere' does not exist; give a --workdir of pretrain"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, line, message):
    code, out, err = ended(capsys, *line.split())
    assert (code, out) == (2, "") and err.startswith(f"error: {message}"), err
    assert len(err.splitlines()) == 1


def test_without_arguments_the_help_goes_to_stderr(capsys):
    code, out, err = ended(capsys)
    assert (code, out) == (2, "") and err.startswith("usage: mcl-jax COMMAND")
    assert ended(capsys, "--version")[1].strip() == __import__("mcl_jax").__version__


@pytest.mark.parametrize("line", ["--help", "knn --help", "completion bash"])
def test_a_full_disk_behind_stdout_is_one_line(line):
    command = [sys.executable, "-m", "mcl_jax", *line.split()]
    with open("/dev/full", "wb", buffering=0) as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == exit_codes.CANNOT_SAVE
    assert done.stderr.startswith("error: ") and "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "line, closed, code",
    [
        ("--help", "stdout", 0),
        ("knn --help", "stdout", 0),
        ("convert --help", "stdout", 0),
        ("summary {run} {run}", "stdout", 0),
        ("summary {run}", "stdout stderr", 1),  # it did not learn
        ("summary nowhere", "stderr", 2),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_is_no_error(tmp_path, line, closed, code, unbuffered):
    """As `| head -1` at its worst: nobody reads at all."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n')
    read, write = os.pipe()
    os.close(read)
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | dict.fromkeys(
        closed.split(), write
    )
    command = [sys.executable, "-m", "mcl_jax", *line.format(run=tmp_path).split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, **streams, env=environment, text=True, check=False)
    os.close(write)
    assert done.returncode == code and not done.stderr, done


@pytest.mark.parametrize("name, script", SCRIPTS.items())
def test_a_script_is_its_command(name, script):
    text = (REPO / f"scripts/{script}.py").read_text()
    assert text.endswith(f'if __name__ == "__main__":\n    script("{name}")\n')
    assert len(text.splitlines()) <= 6 and registry.find(name.split())[1] == []


def test_commands_are_thin():
    for path in (REPO / "mcl_jax/commands").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 100, path
    assert set(SCRIPTS) | {"convert", "completion"} == {c.name for c in registry.COMMANDS}


def test_short_names_of_configurations(tmp_path, monkeypatch):
    demo = str(REPO / "configs/demo.py")
    given = ["--config", "demo", "--config.seed=1", "--config=mcl:c4,loss=b", "--", "--config=demo"]
    assert main._with_config_files(given) == [
        *("--config", demo, "--config.seed=1"),
        *(f"--config={REPO}/configs/mcl.py:c4,loss=b", "--", "--config=demo"),
    ]
    for name in ("configs/demo.py", "nosuch.py", "../demo", ""):
        assert path_of(name) == name
    with pytest.raises(
        UserError, match="no configuration 'dmo'; did you mean 'demo'[?] There are base"
    ):
        path_of("dmo:c4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("")  # a file of the user's comes first
    assert path_of("demo") == "demo"
    (tmp_path / "mcl").mkdir()  # a folder is no configuration
    (tmp_path / "dmo").mkdir()
    assert path_of("mcl:c4") == f"{REPO}/configs/mcl.py:c4" and path_of("dmo") == "dmo"
    assert main._with_config_files(["-config", "mcl"]) == ["-config", f"{REPO}/configs/mcl.py"]


def test_completion_offers_commands_flags_and_groups():
    assert completion.choices([])[:3] == ["pretrain", "convert", "prepare"]
    assert completion.choices(["bench"]) == ["step", "start", "data", "probe", "gpu"]
    flags = completion.choices(["pretrain"])
    assert {"--workdir=", "--config=", "--distributed"} <= set(flags)
    assert "--count" in completion.choices(["visualize"])
    assert "--to" in completion.choices(["convert"])
    with pytest.raises(UserError):
        registry.find(["nosuch"])


def test_bash_completes(tmp_path):
    """The real shell, asked as it asks itself when Tab is pressed."""
    (tmp_path / "mcl-jax").write_text(f'#!/bin/sh\nexec {sys.executable} -m mcl_jax "$@"\n')
    (tmp_path / "mcl-jax").chmod(0o755)
    asked = """
source <(mcl-jax completion bash)
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _mcl_jax 2>/dev/null
  echo "${COMPREPLY[@]}"; }
ask mcl-jax pre
ask mcl-jax bench d
ask mcl-jax knn --work
"""
    done = subprocess.run(
        ["bash", "-c", asked],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:3] == ["pretrain prepare", "data", "--workdir="], done
    assert not re.search("error", done.stderr), done.stderr
