"""Jobs of several processes, for real: 1, 2 and 4 of them over loopback, four devices in all."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import command_line
import pytest
from conftest import QUICK_COMPILE

from mcl_jax import exit_codes
from mcl_jax.errors import UserError
from mcl_jax.report import metrics
from mcl_jax.runtime import compile_cache, hosts

TESTS = Path(__file__).resolve().parent
DEVICES, STEPS = 4, 6
TOLERANCE = 2e-5  # sums over devices in another order, float32
ARGUMENTS = [
    *("--config", str(TESTS.parent / "configs/demo.py")),
    "--config.data.dataset=scenes",
    "--config.data.split=train[:32]",
    "--config.data.batch_size=16",
    "--config.data.image_size=32",
    "--config.data.canvas_size=32",
    "--config.data.threads=1",
    "--config.model.neck=c4",
    "--config.model.fpn_channels=8",
    "--config.model.head_convs=1",
    "--config.model.projector_hidden=16",
    "--config.model.projector_out=8",
    "--config.model.predictor_hidden=16",
    "--config.montage.levels=1",
    "--config.knn.every_epochs=0.0",
    "--config.optimizer.name=sgd",
    "--config.optimizer.base_lr=0.005",  # see test_torture.py, other numbers of devices
    "--config.optimizer.warmup_epochs=0.0",
    f"--config.optimizer.epochs={STEPS / 2}",
    "--config.log.montages=0",
    "--config.log.every_steps=1",
    "--config.log.checkpoint_steps=2",
    "--config.log.lost_host_s=10",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(workdir, cache, processes, *extra):
    """The processes of a job on one machine; process 0 first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES // processes}"
    environment = os.environ | compile_cache.variables(cache / str(processes))
    environment |= {"XLA_FLAGS": f"{flags} {QUICK_COMPILE}"}
    command = [sys.executable, str(TESTS / "stand_in_pretrain.py"), *ARGUMENTS, *extra]
    command.append(f"--workdir={workdir}")
    join = [f"--coordinator={address}", f"--processes={processes}"] if processes > 1 else []
    return [
        subprocess.Popen(
            [*command, *join, *([f"--process={i}"] if join else [])],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(job):
    """(exit code, messages) of every process."""
    messages = [process.communicate(timeout=400)[1] for process in job]
    return [(p.returncode, text) for p, text in zip(job, messages, strict=True)]


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir)]


def test_jobs_of_four_two_and_one_process_train_alike_through_sigterm_and_loss(cache, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    ((code, messages),) = finish(start(whole, cache, 1))
    assert code == 0 and f"{STEPS}/{STEPS}" in messages, messages
    assert len(losses(whole)) == STEPS

    job = start(shared, cache, 4)
    wait_for(lambda: (shared / "metrics.jsonl").exists() and losses(shared), job)
    job[3].send_signal(signal.SIGTERM)  # to one of them: all stop after the same step
    first, *others = finish(job)
    saved = newest(shared)
    assert (
        first[0] == exit_codes.STOPPED
        and 1 <= saved < STEPS
        and f"step {saved} is saved" in first[1]
    ), first
    assert "4 cpu device(s)" in first[1]
    for code, text in others:  # the first alone speaks
        assert code == exit_codes.STOPPED, text
        assert "device(s)" not in text and "is saved" not in text and f"/{STEPS}" not in text
    assert losses(shared) == pytest.approx(losses(whole)[:saved], rel=TOLERANCE)

    job = start(shared, cache, 2)
    wait_for(lambda: len(losses(shared)) > saved, job)
    job[1].send_signal(signal.SIGKILL)  # the other must not wait for ever
    (code, messages), _ = finish(job)
    # a collective fails, or JAX's own watch notices first and aborts
    assert code in (exit_codes.LOST_HOST, -signal.SIGABRT), messages
    assert "another host was lost" in messages or "another task died" in messages, messages
    assert "Traceback" not in messages and newest(shared) >= saved

    ((code, messages),) = finish(start(shared, cache, 1))
    assert code == 0 and "(resumed)" in messages, messages
    assert losses(shared) == pytest.approx(losses(whole), rel=TOLERANCE)


def newest(workdir):
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return max(int(name) for name in names if name.isdigit())


def wait_for(condition, job):
    deadline = time.monotonic() + 300
    while not condition():
        assert all(process.poll() is None for process in job), finish(job)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), "belong together"),
        ((None, 2, 0), "belong together"),
        (("localhost:1", 2, 2), "--process 2 is not one of 0..1"),
        ((None, None, None), "cannot join the job"),
        *(
            ((address, 2, 0), "is not HOST:PORT with a port from 1 to 65535, e.g. ")
            for address in (
                *("", "nohost", "host:", ":1234", "host:0", "host:65536", "host:-1", "host:1e3"),
                *("http://host:80", "fd00::1:1234", "a host:1", "host:1\n", "host:" + "9" * 5000),
            )
        ),
    ],
)
def test_wrong_jobs_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        hosts.join(*arguments, lost_after_s=10)


def test_a_scheduler_s_odd_variables_are_one_line(monkeypatch):
    for name, value in (("JOB_ID", "1"), ("STEP_NODELIST", ""), ("NTASKS", "x"), ("PROCID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="cannot join the job: .* --coordinator HOST:PORT"):
        hosts.join()


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "--config=demo", "--processes=2"),  # which would train as one
        ("pretrain", "--config=demo", "--process=0"),
        ("pretrain", "--config=demo", "--coordinator="),
        ("pretrain", "--config=demo", "--distributed"),
        ("linear", "--output=o", "--distributed"),
        ("svm", "--distributed"),
    ],
)
def test_commands_refuse_wrong_jobs_in_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.run(*words, "--workdir=w") == exit_codes.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot join the job") or "give all or none" in line
    assert not list(tmp_path.iterdir())
