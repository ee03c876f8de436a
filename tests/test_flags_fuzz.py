"""A seeded fuzz of the flags of all commands: wrong kinds, huge, negative, nan, empty, odd letters.

Every command gets what lets it end before it compiles: no run, no data, no configuration. So what is
tried is the way from a command line to one line. pretrain's --config is tried in test_cli.py.
"""

import argparse
import json
import random

import command_line
import conftest
import pytest
from untrained_states import untrained_state

from mcl_jax import program, sharding
from mcl_jax.commands import flag_help, registry
from mcl_jax.exit_codes import DONE, FAILED, USER_ERROR
from mcl_jax.runtime import checkpoint

# What ends each command early, one of them at a time.
ENDS = {
    "pretrain": [["--config=nowhere.py"], ["--config=demo", "--config.data.batch_size=0"], []],
    "convert": [["nowhere"], ["folder"], ["fake"], ["file"], []],
    "prepare": [
        ["imagenet", "--train_tar=nowhere"],
        ["coco", "--annotations_zip=file"],
        ["folder", "--folder=folder"],
        ["tfrecord", "--input=folder"],
        ["nosuch"],
        [],
    ],
    **{
        name: [[], *([f"--workdir={run}"] for run in ("nowhere", "folder", "fake", "run", "run"))]
        for name in ("knn", "linear", "svm", "probe")
    },
    "visualize": [["nowhere"], ["folder"], ["fake", "file"], ["run"], ["run", "file"], []],
    "summary": [["nowhere"], ["folder"], ["fake", "folder"], []],
    "plan": [["--config=demo"], ["--config=nowhere.py", "--topology=cpu:8"], []],
    "study": [["--config=demo"], ["--config=study_photos:nosuch"], ["--config=study_photos"]],
    "bench step": [["--config=nowhere.py"], ["--config=demo", "--config.seed=-1"], []],
    "bench start": [["--config=nowhere.py"], ["--config=demo", "--config.seed=-1"], []],
    "bench data": [["--config=nowhere.py"], ["--config=demo", "--config.data.dataset=folder:x"]],
    "bench probe": [["--config=nowhere.py"], ["--config=demo", "--config.seed=-1"], []],
    "bench gpu": [["--config=nowhere.py"], ["--config=demo", "--parts=nosuch"], []],
    "instance-sizes": [["--dataset=folder:nowhere"], ["--config=nowhere.py"], ["--dataset=tfds:x"]],
    "coco-subset": [["nowhere"], ["file"], ["folder"], ["empty.json"], []],
    "torture": [["--scratch=file"], ["--scratch=file/x"]],
    "completion": [["words"], ["bash"], ["words", "bench"], []],
}
# What is left to the end of a command line: the last value of a flag counts.
STOPPERS = {"torture": ["--scratch=file"], "study": ["--results=file"], "bench gpu": ["--parts=x"]}
VALUES = (
    *("", " ", "0", "-1", "1", "2", "3.5", "1e-9", "nan", "inf", "-inf", "1e400", "9" * 30),
    *(
        "9" * 5000,
        "²",
        "٣",
        "1_000",
        "0x10",
        "None",
        "True",
        "maybe",
        "x",
        "a,b",
        ",",
        "1,2",
        "all",
    ),
    *("caf\udce9", "\ud800", "a\nb", "\t", "%s%n", "'", '"', "é", "\u202e", "x" * 300, "x" * 5000),
    *("file", "folder", "nowhere", "nowhere/x.json", "link", "broken", "/dev/null", "/", ".", "~"),
    *("~nobody_of_this_name/x", "s3://bucket/x", "https://host/x", "folder:nowhere", "1:2", "0:0"),
    *("cpu:0", "cpu:x", "v5e:0x0", "k=v", "steps=nan", "res2", "res9", "backbone", "--", "-", "="),
)


def flags_of(name):
    """(flag, whether it takes a value) of a command, of all kinds that it has."""
    module = registry.find(name.split())[0].module()
    if hasattr(module, "parser"):
        return sorted(set(_of_parser(module.parser(""))))
    own = [(f"--{flag.name}", flag.flag_type() != "bool") for flag in flag_help.own_flags(module)]
    return own + [(flag, True) for flag in ("--flagfile", "--undefok", "--verbosity")]  # absl's


def _of_parser(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _of_parser(inner)
        elif action.option_strings and not isinstance(action, argparse._HelpAction):
            yield action.option_strings[0], action.nargs != 0


def fuzzed(rng, name, flags):
    words = list(rng.choice(ENDS[name]))
    for _ in range(rng.choice((0, 1, 1, 2, 3)) if flags else 0):
        flag, takes_value = rng.choice(flags)
        if rng.random() < 0.05:
            flag = flag[:-1] if rng.random() < 0.5 else f"{flag}x"
        if not takes_value or rng.random() < 0.03:
            words.append(flag)
        elif rng.random() < 0.8:
            words.append(f"{flag}={rng.choice(VALUES)}")
        else:
            words += [flag, rng.choice(VALUES)]
    if rng.random() < 0.1 or not flags:
        words.append(rng.choice(VALUES))
    return words + 2 * STOPPERS.get(name, [])  # a flag without its value takes the first


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of its first step, whose data are no more."""
    config = conftest.tiny_config()
    built = program.build(config, sharding.mesh_for(config), images=64)
    plain = program.plain_config(config)
    for section in ("data", "probe"):
        plain[section]["dataset"] = "folder:nowhere"
    folder = tmp_path_factory.mktemp("runs") / "run"
    checkpoint.write(folder, untrained_state(built), {"config": plain})
    return folder


@pytest.fixture
def place(run, tmp_path, tmp_path_factory, monkeypatch):
    """The current folder: a file, a folder, a run whose checkpoint is empty, links."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "fake/checkpoints/1/state").mkdir(parents=True)
    (tmp_path / "empty.json").write_text(json.dumps({}))
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "run").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    return tmp_path


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_every_command_is_tried():
    assert ENDS.keys() == {command.name for command in registry.COMMANDS}


@pytest.mark.parametrize("name", ENDS)
def test_fuzzed_flags_end_in_one_line_or_none(place, capsys, name):
    command_line.forget()
    flags = [pair for pair in flags_of(name) if pair[0] != "--config"]
    rng, before, counts = random.Random(name), listing(place), {DONE: 0, FAILED: 0, USER_ERROR: 0}
    for _ in range(60):
        words = fuzzed(rng, name, flags)
        code = command_line.run(*name.split(), *words)
        told = capsys.readouterr()
        errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert code in counts and "Traceback" not in told.err, (words, told.err)
        assert len(errors) == (code == USER_ERROR), (words, told.err)
        assert all(len(line) < 12_000 for line in errors), words
        if code == USER_ERROR:
            assert listing(place) == before, words
        counts[code] += 1
    print(counts)
    assert counts[USER_ERROR] >= 30 or name == "completion", counts
    assert not counts[FAILED]
