"""Configuration files: which are found, what they may do, and their mistakes as one line."""

import os
import sys
from pathlib import Path

import pytest
from test_cli import DEMO, REPO, error_of, parsed

from mcl_jax.configs import path_of
from mcl_jax.errors import UserError
from mcl_jax.settings import files

HEAD = "from mcl_jax.configs import base\ndef get_config():\n  c = base.get_config()\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", "FILE cannot be loaded: FILE, line 1: invalid syntax"),
        ("\n\nimport nothere\n", "FILE, line 3: ModuleNotFoundError: No module named 'nothere'"),
        ("x = 1\n", "FILE cannot be loaded: it has no function get_config()"),
        ("def get_config():\n  return None\n", "FILE: get_config() returned a NoneType; it must"),
        ("def get_config():\n  return {}\n", "FILE: get_config() returned a dict; it must return"),
        (
            "def get_config():\n  return 1 / 0\n",
            "FILE, line 2: ZeroDivisionError: division by zero",
        ),
        ("def get_config():\n  raise KeyError('a\\nb')\n", "FILE, line 2: KeyError: "),
        ("def get_config():\n  open('/nowhere')\n", "FILE, line 2: FileNotFoundError: [Errno 2]"),
        (f"{HEAD}  c.data.batch_size = 'a'\n  return c\n", "FILE, line 4: TypeError: Could not"),
        (f"{HEAD}  c.data = 3\n  return c\n", "FILE, line 4: TypeError: Could not override"),
        (
            "import sys\nsys.exit(7)\n",
            "FILE, line 2: SystemExit: it ends the program (7); a configuration may not",
        ),
        (
            "def get_config():\n  raise SystemExit\n",
            "FILE, line 2: SystemExit: it ends the program",
        ),
        ("def get_config():\n  raise GeneratorExit\n", "FILE, line 2: GeneratorExit:"),
        ("\0", "FILE cannot be loaded: source code string cannot contain null bytes"),
    ],
)
@pytest.mark.parametrize("override", [[], ["--config.data.batch_size=8"]])
def test_a_mistake_in_a_config_file_names_file_and_line(tmp_path, text, message, override):
    path = tmp_path / "own.py"
    path.write_text(text)
    expected = f"--config {message.replace('FILE', str(path))}"
    assert error_of(f"--config={path}", *override).startswith(expected)
    with pytest.raises(UserError) as caught:  # as `python -m convert` loads it
        files.load(str(path))
    assert " ".join(str(caught.value).split()).startswith(expected)


def test_a_wrong_value_in_a_config_file_is_refused_at_the_door(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"{HEAD}  c.optimizer.lr = 3\n  return c\n")
    message = "no key optimizer.lr; did you mean optimizer.base_lr?"
    assert error_of(f"--config={path}") == message
    with pytest.raises(UserError) as caught:
        files.load(path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name, message",
    [
        ("nofile.py", "--config 'nofile.py' does not exist; give a Python file with a function"),
        ("a:b/own.py", "--config 'a:b/own.py' does not exist"),
        ("own.py:words", "--config 'own.py' does not exist"),
        (".", "--config '.' is a folder, not a file; give a Python file"),
        ("/dev/null", "--config '/dev/null' is no file that can be read twice"),
        ("gs://bucket/own.py", "--config gs://bucket/own.py lies in a bucket; copy it"),
        ("https://host/own.py", "--config 'https://host/own.py' is a URL"),
        ("", "--config is empty; give a path"),
        ("~nobody-of-this-name/own.py", "starts with '~', but there is no such home folder"),
    ],
)
def test_config_files_that_are_not_there(name, message):
    assert message in error_of(f"--config={name}")
    with pytest.raises(UserError) as caught:
        files.load(name)
    assert message in str(caught.value)


def test_config_files_that_cannot_be_used():
    assert error_of().startswith("--config FILE is missing")
    assert "takes 0 positional arguments" in error_of(f"{DEMO}:words")
    assert error_of(f"--config={REPO}/configs/mcl.py:detko").startswith("unknown word 'detko'")


def test_config_files_are_found_behind_home_folders_colons_and_other_suffixes(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mcl:18:30").mkdir()
    for name in ("own.py", "mcl:18:30/own.py", "own.config"):
        text = HEAD.replace("()", "(seed='1')", 1) + "  c.seed = int(seed)\n  return c\n"
        Path(name).write_text(text)
    for name in ("~/own.py", "own.config", "mcl:18:30/own.py", str(tmp_path / "mcl:18:30/own.py")):
        assert path_of(name) == name
        for whole, seed in ((name, 1), (f"{name}:7", 7)):
            code, config, errors = parsed(f"--config={whole}")
            assert (code, errors) == (0, "") and config.seed == files.load(whole).seed == seed


def test_what_a_config_file_does_to_the_process_is_undone(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.py"
    path.write_text(
        "import os, sys\nfrom absl import flags\nprint('hello')\nos.chdir('/')\n"
        f"sys.argv[1:] = ['x']\nsys.argv = []\n{HEAD}  return c\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.argv)
    files.load("own.py")
    assert (os.getcwd(), sys.argv) == (str(tmp_path), before)
    assert capsys.readouterr() == ("", "hello\n")  # stdout is the command's
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        files.load("own.py")


def test_arguments_of_config_files_are_the_same_for_both_loaders():
    name = f"{REPO}/configs/mcl.py:supervised,swin_t"
    loaded, (_, flagged, _) = files.load(name), parsed(f"--config={name}")
    assert loaded.to_dict() == flagged.to_dict()
    assert (loaded.method, loaded.model.backbone) == ("supervised", "swin_t")
