"""From a command line to a checked configuration: one line for every mistake, in this process."""

import contextlib
import io
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from mcl_jax import cli, exit_codes
from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.settings import door
from mcl_jax.settings.keys import KEYS

REPO = Path(__file__).resolve().parent.parent
DEMO = f"--config={REPO / 'configs/demo.py'}"


def parsed(*arguments):
    """(exit code, config, what stands on stderr) of a script's first steps."""
    known = flags.FLAGS
    for name in [name for name in known if name == "config" or name.startswith("config.")]:
        delattr(known, name)
    before, sys.argv = sys.argv, ["script", *arguments]
    code, config, errors = 0, None, io.StringIO()
    flag, handler = cli.define_config(), cli.PlainHandler()
    logging.getLogger().addHandler(handler)  # as every command does
    try:
        with contextlib.redirect_stderr(errors), cli.mistakes_in_one_line():
            rest = cli._parse(sys.argv)
            if len(rest) > 1:
                raise UserError(f"unexpected argument {rest[1]!r}")
            config = cli.config_of(flag)
    except SystemExit as end:
        code = end.code
    finally:
        logging.getLogger().removeHandler(handler)
        sys.argv = before
        known.mark_as_parsed()
    return code, config, errors.getvalue()


def error_of(*arguments):
    code, config, errors = parsed(*arguments)
    assert code == 2 and config is None
    lines = errors.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    return lines[0].removeprefix("error: ")


def test_overrides_arrive():
    given = [
        "--config.data.batch_size=8",
        "--config.montage.copies=(1,2,3,4)",
        "--config.seed",
        "7",
    ]
    code, config, errors = parsed(DEMO, *given, "--noconfig.numerics.remat")
    assert (code, errors) == (0, "")
    assert (config.data.batch_size, config.seed, config.montage.copies) == (8, 7, (1, 2, 3, 4))
    assert config.numerics.remat is False and config.is_locked


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.optimizer.lr=1", "no key optimizer.lr; did you mean optimizer.base_lr?"),
        ("--config.data.batchsize=3", "no key data.batchsize; did you mean data.batch_size?"),
        ("--config.data=3", "data is a section, not a value; its keys are dataset, split"),
        ("--config.dta.x=3", "no key dta.x; did you mean a key of the section data?"),
        (
            "--config.data.batch_size=x",
            "data.batch_size is 'x'; it must be a whole number of images",
        ),
        ("--config.data.batch_size=1.5", "data.batch_size is '1.5'; it must be a whole number"),
        ("--config.seed=-1", "seed is -1; it must be a whole number from 0 to 4,294,967,295"),
        ("--config.optimizer.epochs=nan", "optimizer.epochs is nan; it must be a finite number"),
        ("--config.optimizer.epochs=1e999", "optimizer.epochs is inf; it must be a finite number"),
        ("--config.numerics.remat=maybe", "numerics.remat is 'maybe'; it must be True or False"),
        ("--config.montage.copies=(1,", "montage.copies is '(1,'; it must be a tuple of 1 to 4"),
        ("--config.montage.copies=abc", "montage.copies is ('abc',); it must be a tuple of 1 to 4"),
        ("--config.loss.level_weights[0]=2", "an entry of loss.level_weights cannot be set alone"),
        ("--config.study.seeds=2", "no key study.seeds in "),
        ("--bogus=1", "Unknown command line flag 'bogus'"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_flag_is_one_line(flag, message):
    assert error_of(DEMO, flag).startswith(message)


# A seeded fuzz of command lines.

VALUES = (
    *("0", "-1", "1", "2", "3", "0.5", "1.5", "1e-9", "-0.0", "1e400", "nan", "-inf", "9" * 30),
    *("", " ", "None", "True", "maybe", "x", "a,b", "()", "(1,)", "(1,2)", "(0.1,0.2,0.3)", "[1]"),
    *("(1,", "{}", "__import__('os')", "caf\udce9", "\0", "a\nb", "'q'", "=", "folder:/nowhere"),
    *("mcl", "byol", "moco", "detco", "supervised", "mosaic", "copy_paste", "step", "swin_t"),
    *("4294967296", "0x10", "1_000", "((1,2),(3,4))", "('P4','P5')", "lambda: 1", "%s%n"),
)
WORDS = ("byol", "moco", "c4", "levels=2", "levels=9", "loss=z", "batch=0", "wd=x", ",,", "=", ":")


DEFAULTS = dict(door.flattened(base.get_config().to_dict()))


def fuzzed(rng):
    """A command line of which some are right."""
    arguments = [DEMO]
    if rng.random() < 0.2:
        words = ",".join(rng.choices(WORDS, k=rng.randint(0, 3)))
        arguments = [f"--config={REPO}/configs/mcl.py:{words}"]
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(KEYS))
        if rng.random() < 0.15:  # a typing error
            place = rng.randrange(len(key))
            key = key[:place] + rng.choice(["", ".", "_", "x", "[0]", "=", " "]) + key[place + 1 :]
        dashes = rng.choice(["--", "--", "--", "-", "--no"])
        separate = rng.choice(["=", "=", "=", " ", None])
        own = [str(DEFAULTS.get(key, 1)), *map(str, KEYS[key].listed() if key in KEYS else ())]
        value = rng.choice(own) if rng.random() < 0.6 else rng.choice(VALUES)
        if separate == " ":
            arguments += [f"{dashes}config.{key}", value]
        else:
            arguments.append(f"{dashes}config.{key}" + (f"={value}" if separate else ""))
    if rng.random() < 0.1:
        arguments.append(
            rng.choice(["--", "stray", "--bogus", "-", "--=", "--config", "--config="])
        )
    if rng.random() < 0.1:
        rng.shuffle(arguments)
    return arguments


def test_fuzzed_command_lines_end_in_a_config_or_in_one_line():
    rng, counts = random.Random(0), {0: 0, 2: 0}
    for _ in range(500):
        arguments = fuzzed(rng)
        code, config, errors = parsed(*arguments)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code in counts and "Traceback" not in errors, arguments
        assert len(lines) == (code == 2) and (config is None) == (code == 2), (arguments, errors)
        assert len(lines) == 0 or (len(lines[0]) < 600 and lines[0].isprintable()), arguments
        counts[code] += 1
    print(counts)
    assert counts[0] >= 20 and counts[2] >= 200, counts


# Real processes: the exit code, and nothing written.


def script(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, REPO / "scripts" / name, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "platform, flag, message",
    [
        ("cpu", "--config.log.keep_checkpoints=0", "log.keep_checkpoints is 0; it must be a whole"),
        ("cpu", "--flagfile=nowhere", "Unable to open flagfile: [Errno 2] No such file"),
        ("nosuch", "--config.seed=1", "JAX_PLATFORMS is 'nosuch', but there is no such device"),
    ],
)
def test_pretrain_refuses_and_writes_nothing(tmp_path, platform, flag, message):
    workdir = tmp_path / "run"
    done = script("pretrain.py", DEMO, flag, f"--workdir={workdir}", JAX_PLATFORMS=platform)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if message in line
    ]
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_one_line_with_the_code_of_shells(capsys):
    def work():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        cli.guarded(work)
    assert end.value.code == exit_codes.INTERRUPTED == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_warning_is_a_plain_line(capsys):
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        cli.plain_log()
        cli.plain_log()  # twice is once
        logging.getLogger("mcl_jax.x").warning("%d images", 3)
        logging.getLogger("orbax").info("a lot")
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert capsys.readouterr().err == "warning: 3 images\n"
