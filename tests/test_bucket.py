"""Workdirs in a bucket, against a server on this machine that speaks Google's protocol."""

import asyncio
import json
import logging
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mcl_jax import train
from mcl_jax.errors import CannotSave, UserError
from mcl_jax.runtime import checkpoint, growing_log, lease, machine, storage
from mcl_jax.runtime.checkpointer import Checkpointer


@pytest.fixture
def workdir(gcs, request):
    """A folder of the bucket for one test."""
    yield storage.locate(f"gs://mcl/{request.node.name}")
    gcs.outage = None


def test_objects_are_written_whole_created_once_listed_and_removed(workdir):
    assert storage.names(workdir) == [] and not storage.exists(workdir)
    storage.write(workdir / "a.txt", "hello")
    storage.write(workdir / "sub" / "b.bin", lambda file: file.write(b"123"))
    assert storage.names(workdir) == ["a.txt", "sub"] and storage.exists(workdir)
    assert storage.read(workdir / "a.txt") == b"hello"
    assert storage.is_file(workdir / "a.txt") and not storage.is_file(workdir)
    md5 = storage.digest(workdir / "a.txt", like="md5:")
    assert storage.stats(workdir)["a.txt"] == (5, md5)
    assert storage.stats(workdir)["sub/b.bin"].size == 3
    with pytest.raises(FileExistsError):
        storage.create(workdir / "a.txt", b"mine")
    assert storage.read(workdir / "a.txt") == b"hello"
    with pytest.raises(FileNotFoundError):
        storage.read(workdir / "none")
    storage.remove(workdir / "sub")
    storage.remove(workdir / "none")
    assert storage.names(workdir) == ["a.txt"]


def test_paths_are_understood_as_users_and_argparse_give_them(gcs, tmp_path):
    given = storage.locate("gs://mcl/run")
    assert str(given / "x") == "gs://mcl/run/x" and given.name == "run"
    assert storage.locate(type(tmp_path)("gs://mcl/run")) == given  # pathlib eats a slash
    for local in ("/gs/mcl", "runs/a:b", "~/x", "gs"):
        assert storage.locate(local) == type(tmp_path)(local)
    with pytest.raises(UserError, match="s3://b/x: only folders and gs://"):
        storage.locate("s3://b/x")


def test_a_log_is_a_few_objects_and_one_stream(gcs, workdir, monkeypatch):
    monkeypatch.setattr(growing_log, "PART_BYTES", 100)
    monkeypatch.setattr(growing_log, "UPLOAD_S", 0.05)
    place = workdir / "metrics.jsonl"
    grown = growing_log.open_log(place, keep=b"")
    lines = [f"{i:039}\n".encode() for i in range(8)]
    for line in lines[:5]:
        grown.write(line)
        grown.flush()
        grown.sync()
    grown.write(b"no whole line")
    grown.sync()
    assert growing_log.read(place) == b"".join(lines[:5])
    grown._closed.set()  # as a kill leaves it
    assert len(storage.names(workdir)) == 2
    again = growing_log.open_log(place, keep=b"".join(lines[:2]))
    assert growing_log.read(place) == b"".join(lines[:2])
    gcs.requests.clear()
    for line in lines[5:]:
        again.write(line)
        again.flush()
    again.close()
    assert growing_log.read(place) == b"".join(lines[:2] + lines[5:])
    assert gcs.requests["POST"] <= 3
    assert {name[-11:-7] for name in storage.names(workdir)} == {"0001"}


def test_a_bucket_has_one_owner_too(workdir, monkeypatch):
    with lease.hold(workdir):
        assert storage.names(workdir / lease.FOLDER) == ["1.json"]
        said = []

        def other():
            with pytest.raises(lease.Held) as refusal, lease.hold(workdir):
                pass
            said.append(str(refusal.value))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "is in use: host " in said[0]
    assert storage.names(workdir / lease.FOLDER) == []
    monkeypatch.setattr(lease, "EXPIRED_S", 0.2)
    monkeypatch.setattr(lease, "_POLL_S", 0.05)
    record = machine.myself() | {"host": "elsewhere", "boot": "there", "machine": "another"}
    storage.write(workdir / lease.FOLDER / "4.json", json.dumps(record))
    with lease.hold(workdir):
        assert storage.names(workdir / lease.FOLDER) == ["5.json"]


@struct.dataclass
class Tree:
    """What `Checkpointer` takes: a tree with a step."""

    step: np.int32
    weights: jax.Array


def tree(step):
    return Tree(np.int32(step), jnp.arange(1000.0) + step)


def steps(workdir):
    return [int(name) for name in storage.names(workdir / "checkpoints")]


def restored(checkpointer):
    found = checkpointer.restore(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree(0))))
    return None if found is None else int(found[0].step)


def test_checkpoints_are_committed_sealed_and_the_newest_kept(gcs, workdir, capsys):
    with Checkpointer(workdir, keep=2) as checkpointer:
        assert restored(checkpointer) is None
        committed = []
        checkpointer.before_commit = lambda: committed.append(steps(workdir))
        for step in (1, 2, 3):
            checkpointer.save(tree(step), {"config": {}})
        checkpointer.wait()
        assert len(committed) == 3
    assert steps(workdir) == [2, 3]
    read, meta = checkpoint.read("gs://mcl/" + workdir.name)
    assert meta["step"] == 3 and np.array_equal(read["weights"], tree(3).weights)

    # a save that was killed before its commit; an array of the newest that was changed
    storage.write(workdir / "checkpoints" / "4" / "state" / "cut", b"1")
    folder = workdir / "checkpoints" / "3"
    name = max(storage.stats(folder).items(), key=lambda item: item[1].size)[0]
    content = bytearray(storage.read(folder / name))
    content[len(content) // 2] ^= 1
    storage.write(folder / name, bytes(content))
    with pytest.raises(UserError, match="checkpoints/3 is damaged: the content of state/"):
        checkpoint.read(workdir)
    with Checkpointer(workdir, keep=2) as checkpointer:
        assert steps(workdir) == [2, 3]
        assert restored(checkpointer) == 2
        said = capsys.readouterr().err
        assert "step 3 is damaged" in said and "the one before, step 2" in said
        assert (
            "has changed" in json.loads(storage.read(workdir / "damaged_checkpoints/3"))["reason"]
        )
    assert storage.exists(folder / name)  # set aside where it is
    with Checkpointer(workdir, keep=2) as checkpointer:
        assert restored(checkpointer) == 2
        assert storage.exists(folder / name)
        checkpointer.save(tree(3), {"config": {}})  # the run comes by again
        checkpointer.wait()
    assert checkpoint.read(workdir)[1]["step"] == 3


def test_a_server_that_is_away_costs_no_older_checkpoint(gcs, workdir, capsys, monkeypatch):
    meta, tries = {"config": {}}, SimpleNamespace(sleep=lambda s: asyncio.sleep(s / 100))
    with Checkpointer(workdir, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(tree(step), meta)
            checkpointer.wait()
        with monkeypatch.context() as quick:
            quick.setattr("gcsfs.retry.asyncio", tries)
            checkpointer.before_commit = gcs.stop
            checkpointer.save(tree(3), meta)
            with pytest.raises(
                CannotSave, match="of step 3 was not written, .* newest is of step 2"
            ):
                checkpointer.wait()
        gcs.start()
        checkpointer.before_commit = lambda: None
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "the checkpoint of step 3 was not written: " in said
        checkpointer.save(tree(4), meta)
        checkpointer.wait()
    assert steps(workdir) == [2, 4]  # not 4 alone: 3 was never one of the newest two


@pytest.mark.parametrize(
    ("answer", "message"),
    [(401, "the bucket cannot be read .*gcloud auth"), (403, "give this machine's account access")],
)
def test_no_credentials_and_no_permission_are_one_line(answer, message, gcs, workdir, caplog):
    gcs.outage = answer
    with pytest.raises(UserError, match=message) as refusal:
        train.check_workdir(str(workdir))
    assert "\n" not in str(refusal.value)
    assert not caplog.records  # its client would log a traceback
    client = logging.getLogger("gcsfs")
    assert client.level == logging.NOTSET and not client.filters  # as it was before


def test_no_such_bucket_and_no_gcsfs_are_one_line(gcs, monkeypatch):
    with pytest.raises(UserError, match="there is no bucket 'nowhere'"):
        train.check_workdir("gs://nowhere/run")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs:// needs gcsfs: pip install 'mcl_jax\[gcs\]'"):
        train.check_workdir("gs://mcl/run")
