"""One owner per folder: who is refused, who may take over, and what the refusal says."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from mcl_jax.errors import CannotSave, UserError
from mcl_jax.runtime import lease, machine, storage


def write(folder, **changes):
    """A lease as another process would have left it."""
    leases = folder / lease.FOLDER
    leases.mkdir(parents=True)
    record = machine.myself() | changes
    (leases / "1.json").write_text(json.dumps(record))
    return record


def of_process(pid):
    return {"pid": pid, "process_started": machine.start_of(pid)}


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    parent = os.getppid()
    write(tmp_path, **of_process(parent))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with (
        pytest.raises(lease.Held, match="is in use") as refusal,
        lease.hold(tmp_path),
    ):
        pytest.fail("two owners")
    said = str(refusal.value)
    assert str(tmp_path) in said and socket.gethostname() in said and f"process {parent}," in said
    assert "since 20" in said and "\n" not in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_owners_that_are_gone_do_not_block(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    killed = of_process(ended.pid)
    ended.kill()
    ended.wait()
    real = machine._text
    monkeypatch.setattr(  # not every container has the file
        machine, "_text", lambda path: "m" if path == "/etc/machine-id" else real(path)
    )
    gone = {
        "killed": killed,
        "number given to another process": {"process_started": "1"},
        "other boot": {"boot": "another", "pid": os.getppid()},
    }
    for name, changes in gone.items():
        folder = tmp_path / name.replace(" ", "-")
        write(folder, **changes)
        with lease.hold(folder):
            assert [p.name for p in (folder / lease.FOLDER).iterdir()] == ["2.json"], name
        assert not (folder / lease.FOLDER).exists(), name
    cut = tmp_path / "cut" / lease.FOLDER  # a kill in the middle of its creation
    cut.mkdir(parents=True)
    (cut / "7.json").write_text('{"host"')
    with lease.hold(tmp_path / "cut"):
        assert storage.names(cut) == ["8.json"]


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_elsewhere_is_known_by_its_heartbeat_alone(alive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, "EXPIRED_S", 0.4)
    monkeypatch.setattr(lease, "_POLL_S", 0.02)
    record = write(tmp_path, host="elsewhere", boot="there", machine="another")
    path = tmp_path / lease.FOLDER / "1.json"
    beat = json.dumps(record | {"heartbeat": 1})
    if alive:
        threading.Timer(0.1, lambda: storage.write(path, beat)).start()
        with pytest.raises(lease.Held, match="host elsewhere"), lease.hold(tmp_path):
            pytest.fail("two owners")
        assert json.loads(path.read_text())["heartbeat"] == 1
    else:
        with lease.hold(tmp_path):
            assert storage.names(tmp_path / lease.FOLDER) == ["2.json"]
    assert "waiting up to 0 s for a sign of life" in capsys.readouterr().err


def test_of_many_that_start_at_once_one_wins(tmp_path):
    for round_ in range(5):
        folder = tmp_path / str(round_)
        if round_ % 2:
            write(folder, process_started="1")  # a dead one to take over
        won, start = [], threading.Barrier(8)

        def take(folder=folder, won=won, start=start):
            start.wait()
            with contextlib.suppress(lease.Held):
                won.append(lease._take(folder))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()


def test_the_same_run_may_ask_again_but_no_other_thread(tmp_path):
    said = []

    def other():
        try:
            with lease.hold(tmp_path):
                said.append("two owners")
        except lease.Held as error:
            said.append(str(error))

    with lease.hold(tmp_path) as outer:
        with lease.hold(os.path.join(tmp_path, "")) as inner:
            assert inner is outer
        assert (tmp_path / lease.FOLDER / "1.json").exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1 and f"process {os.getpid()}," in said[0]


def test_an_owner_shows_signs_of_life_and_notices_that_it_was_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    path = tmp_path / lease.FOLDER / "1.json"
    with lease.hold(tmp_path) as owner:
        until(lambda: json.loads(path.read_text())["heartbeat"] >= 2)
        owner.check()
        # as if it had been suspended, and another host had taken the folder over meanwhile
        record = json.loads(path.read_text()) | {"host": "elsewhere"}
        (tmp_path / lease.FOLDER / "2.json").write_text(json.dumps(record))
        monkeypatch.setattr(lease, "EXPIRED_S", -1.0)
        until(lambda: owner._lost)
        with pytest.raises(lease.Held, match="taken over by host elsewhere"):
            owner.check()
    assert storage.names(tmp_path / lease.FOLDER) == ["2.json"]  # not its own: left alone


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="nothing can be written to .*file/run"),
        lease.hold(tmp_path / "file" / "run"),
    ):
        pytest.fail("owned a file")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        with pytest.raises(CannotSave, match="nothing can be written"), lease.hold(tmp_path):
            pytest.fail("owned a full disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert storage.names(tmp_path / lease.FOLDER) == []
