"""Runs in a bucket: what they leave and ask for; the server away for a while or for ever; kills."""

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import jax
import pytest
import toy_run

import mcl_jax
from mcl_jax import train
from mcl_jax.report import metrics, run_page, runs
from mcl_jax.runtime import (
    checkpoint,
    checkpoint_folders,
    checkpointer,
    growing_log,
    lease,
    storage,
)

STEPS = 14


def config(**changes):
    settings = toy_run.SETTINGS | {"optimizer.epochs": STEPS / 2, "log.keep_checkpoints": 9}
    return mcl_jax.load_config("demo", **(settings | changes))


@pytest.fixture(autouse=True)
def toy(gcs, monkeypatch):
    toy_run.replace_network(monkeypatch.setattr, devices=1)
    monkeypatch.setattr(growing_log, "UPLOAD_S", 0.5)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)
    yield
    gcs.before = lambda method, name: None
    if gcs.outage is not None:
        gcs.stop()
        gcs.start()


@pytest.fixture
def workdir(gcs, request):
    """A folder of the bucket for one test."""
    return storage.locate(f"gs://mcl/{request.node.name}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses by step of a run on a disk that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        toy_run.replace_network(patched.setattr, devices=1)
        train.pretrain(config(), folder)
    return losses(folder)


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics.read(workdir)}


def steps(workdir):
    names = storage.names(workdir / "checkpoints")
    return sorted(int(name) for name in names if name.isdigit())


class Moments:
    """What happens to the server or the run at some requests, one after the other.

    Args:
      acts: (method, pattern of the object's name, what to do before it is answered).
    """

    def __init__(self, *acts):
        self._acts, self._lock = list(acts), threading.Lock()

    def __call__(self, method, name):
        with self._lock:
            expected, pattern, act = self._acts[0] if self._acts else ("", "", None)
            if method != expected or not re.search(pattern, name):
                return
            self._acts.pop(0)
        act()

    @property
    def all_came(self):
        return not self._acts


@pytest.fixture
def keep_every_program():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)


def test_a_run_in_a_bucket_leaves_what_one_on_a_disk_does(workdir, whole, keep_every_program):
    for _ in range(2):
        train.pretrain(config(), workdir, stop_after=STEPS // 2)
    assert losses(workdir) == whole
    inside = storage.names(workdir)
    assert {"config.json", "card.html", "curves.png", "xla_cache", "tensorboard"} <= {*inside}
    assert "owner" not in inside and not any(name.endswith(".tmp") for name in inside)
    assert storage.names(workdir / "xla_cache")
    events = storage.names(workdir / "tensorboard")
    assert len(events) == 2 and all("tfevents" in name for name in events)
    records = b"".join(storage.read(workdir / "tensorboard" / name) for name in events)
    assert records.count(b"images_per_s") == STEPS
    assert storage.read(workdir / "curves.png").startswith(b"\x89PNG")
    assert b"data:image/png" in storage.read(workdir / "card.html")
    given = Path(str(workdir))  # as argparse does, which takes a slash away
    text, _ = runs.learned(given)
    assert f"metrics      {workdir}/metrics.jsonl\n" in text and f"{workdir}/checkpoints" in text
    assert runs.side_by_side([given, given]).count(f"\n{workdir}  {STEPS}  ") == 1


def test_requests_of_a_thousand_steps(gcs, workdir, monkeypatch):
    """Steps make none, so what 1,000 cost is what their saves and the seconds they take cost."""
    monkeypatch.setattr(
        growing_log, "UPLOAD_S", 1e3
    )  # metrics, events and signs of life go by time
    monkeypatch.setattr(lease, "HEARTBEAT_S", 1e3)
    seen = {}

    def count(step, values):
        if step == 111:  # the first line leaves at once
            until(lambda: f"{workdir.name}/steps/metrics.jsonl.0000-000000" in objects())
        seen[step] = gcs.requests.total()

    def objects():
        return gcs.storage.objects["mcl"]

    every = {"log.checkpoint_steps": 1000, "log.every_steps": 111, "log.page_s": 0.0}
    every |= {"optimizer.epochs": 62.5, "data.batch_size": 2}
    train.pretrain(config(**every), workdir / "steps", callbacks=[count])
    assert seen[999] == seen[111]

    changes = {"optimizer.epochs": 3.0, "log.checkpoint_steps": 1, "log.keep_checkpoints": 1}
    train.pretrain(config(**changes, **{"log.page_s": 0.0}), workdir / "saves", callbacks=[count])
    of_a_save = (seen[6] - seen[4]) / 2  # each removes the oldest, too
    gcs.requests.clear()
    run_page.RunPage(config().to_dict(), workdir / "steps", total_steps=1000, every_s=0).close()
    of_a_page = gcs.requests.total()
    assert of_a_save <= 250 and of_a_page == 6  # the figures in docs/tpu.md


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_outages_and_a_death_in_the_middle_of_a_save_cost_a_checkpoint_at_most(
    gcs, workdir, whole, monkeypatch, capsys
):
    """503 for a second at config.json, for ten in a save; then dead until the save after the next."""
    refused = set()
    away, stepping, dead = threading.Event(), threading.Event(), threading.Event()

    def answer_503(seconds):
        gcs.outage = 503
        threading.Timer(seconds, setattr, (gcs, "outage", None)).start()

    def answer_503_in_a_save():
        answer_503(10)
        away.set()

    def die():  # while arrays are written and the loop goes on
        assert stepping.wait(60)
        monkeypatch.setattr(checkpointer, "PATIENCE_S", 0.3)
        gcs.stop()
        dead.set()

    def wait_and_revive(step, values):
        if step == 5:  # the lines of later steps are to be refused
            assert away.wait(60)
        if step == 9:
            stepping.set()
            assert dead.wait(60)
        if step == 11:
            monkeypatch.setattr(checkpointer, "PATIENCE_S", 60.0)
            gcs.start()

    moments = Moments(
        ("POST", "/config.json", lambda: answer_503(1)),
        ("POST", "/checkpoints/4/state/", answer_503_in_a_save),
        ("POST", "/checkpoints/8/state/.*/d/", die),
    )

    def before(method, name):
        moments(method, name)
        if gcs.outage == 503:
            refused.add(re.split("[./]", name.removeprefix(f"{workdir.name}/"))[0])

    gcs.before = before
    train.pretrain(config(), workdir, callbacks=[wait_and_revive])
    assert moments.all_came and {"config", "checkpoints", "metrics", "owner"} <= refused
    assert losses(workdir) == whole and steps(workdir) == [2, 4, 6, 8, 12, 14]
    assert {"config.json", "curves.png", "card.html"} <= {*storage.names(workdir)}
    assert storage.names(workdir / "owner") == []
    data, begun, compiled, *said, progress = capsys.readouterr().err.splitlines()
    assert said == [
        "the checkpoint of step 8 is still being written after 0 s; that of step 10 is left out"
    ]


def test_a_server_that_never_comes_back_ends_the_run_with_one_line_and_code_5(
    gcs, workdir, whole, tmp_path
):
    moments = Moments(("POST", "/checkpoints/[4-8]/state/.*/d/", gcs.stop))
    gcs.before = moments
    code, text = toy_run.Run(
        tmp_path / "log",
        f"--workdir={workdir}",
        f"--config.optimizer.epochs={STEPS / 2}",
        "--config.log.keep_checkpoints=9",
        server=gcs.url,
        constants={"runtime.checkpointer.PATIENCE_S": 2.0, "runtime.growing_log.UPLOAD_S": 0.5},
        hurry=60.0,
    ).end()
    assert moments.all_came and code == 5 and "Traceback" not in text, text
    *_, last = text.splitlines()
    gcs.start()
    newest = checkpoint_folders.find(workdir)[1]
    assert last.startswith("error: ") and f"see above; the newest is of step {newest}." in last
    assert text.count("is left out") + text.count("was not written") >= 3, text
    train.pretrain(config(), workdir)  # now that it is there again
    assert losses(workdir) == whole and steps(workdir)[-1] == STEPS


def test_killed_at_any_moment_a_run_repeats_the_whole_one(gcs, workdir, whole, tmp_path):
    moments = [
        ("POST", "/owner/"),
        ("POST", "/config.json"),  # and compiles
        ("POST", "/checkpoints/2/state/"),  # in the middle of the first save
        ("POST", "/checkpoints/2/commit_success.txt"),
        ("POST", "/metrics.jsonl"),  # begun anew with the lines that are kept
        ("POST", "/checkpoints/6/meta/"),
        ("DELETE", "/checkpoints/4/"),  # the oldest goes
    ]
    flags = [f"--workdir={workdir}", f"--config.optimizer.epochs={STEPS / 2}"]
    flags += ["--config.log.keep_checkpoints=1"]

    def run(method, pattern, number):
        running, started = threading.Event(), []

        def send():
            running.wait(60)
            os.kill(started[0].pid, number)

        gcs.before = Moments((method, pattern, send))
        started.append(toy_run.Run(tmp_path / "log", *flags, server=gcs.url))
        running.set()
        code, text = started[0].end()
        assert gcs.before.all_came, text
        return code, text

    for method, pattern in moments:
        code, text = run(method, pattern, signal.SIGKILL)
        assert code == -signal.SIGKILL, text
    code, text = run("POST", "/checkpoints/8/meta/", signal.SIGTERM)
    saved = steps(workdir)[-1]
    assert code == 75 and f"step {saved} is saved" in text, text
    code, text = toy_run.Run(tmp_path / "log", *flags, server=gcs.url).end()
    assert code == 0 and "Traceback" not in text, text
    assert losses(workdir) == whole and steps(workdir) == [STEPS]
    assert storage.names(workdir / "owner") == []


def test_a_job_of_two_processes_in_a_bucket_is_one_owner_and_repeats_one_process(
    gcs, workdir, tmp_path, monkeypatch
):
    toy_run.replace_network(monkeypatch.setattr, devices=2)
    train.pretrain(config(), tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--workdir={workdir}", f"--config.optimizer.epochs={STEPS / 2}"]
    flags += ["--config.log.keep_checkpoints=9"]
    job, owners, started = [], set(), threading.Event()

    def before(method, name):
        if method == "POST" and "/owner/" in name:
            owners.add(name)
        stop(method, name)

    def terminate_one():
        started.wait(60)
        os.kill(job[1].pid, signal.SIGTERM)
        time.sleep(3)  # JAX looks once a second; without this checkpoint no later one is begun

    stop = Moments(("POST", "/checkpoints/4/commit_success.txt", terminate_one))
    gcs.before = before
    for i in range(2):
        join = (f"--coordinator={address}", "--processes=2", f"--process={i}")
        job.append(toy_run.Run(tmp_path / str(i), *flags, *join, server=gcs.url))
    started.set()
    (code, text), (other, silent) = [process.end() for process in job]
    saved = steps(workdir)[-1]
    assert code == other == 75 and f"step {saved} is saved" in text and 4 <= saved < STEPS, text
    assert "2 cpu device(s)" in text and "device(s)" not in silent
    assert owners == {f"{workdir.name}/owner/1.json"} and storage.names(workdir / "owner") == []
    assert checkpoint.read(workdir)[1]["step"] == saved
    train.pretrain(config(), workdir)  # one process goes on
    assert losses(workdir) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6)
