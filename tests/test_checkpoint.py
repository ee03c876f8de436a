"""Checkpoints: bit-exact round trip, the newest kept, clear errors, other device counts."""

import json
import resource
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from untrained_states import untrained_state

from mcl_jax import program, sharding
from mcl_jax.errors import CannotSave, UserError
from mcl_jax.runtime import checkpoint, integrity, storage
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.failed_saves import FailedSaves


def make_run(devices=1, **model):
    config = tiny_config()
    config.data.batch_size = 16
    config.model.update(model)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return program.build(config, mesh, images=64)


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def state(run):
    rng = np.random.default_rng(0)  # every leaf its own values: no two could be mixed up
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.dtype == np.float32 else x,
        untrained_state(run),
    )


@pytest.fixture(scope="module")
def workdir(run, state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    meta = {"config": program.plain_config(run.config)}
    with Checkpointer(folder, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(state.replace(step=np.int32(step)), meta)
    return folder


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_the_newest_are_kept_and_restored_bit_by_bit(run, state, workdir):
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    with Checkpointer(workdir, keep=2) as checkpointer:
        restored, meta = checkpointer.restore(program.abstract_state(run))
    assert same(restored, state.replace(step=np.int32(3)))
    assert meta["step"] == 3 and meta["config"]["model"]["width"] == 4


def test_another_number_of_devices_restores_the_same_values(state, workdir):
    run = make_run(devices=4)
    with Checkpointer(workdir, keep=2) as checkpointer:
        restored, _ = checkpointer.restore(program.abstract_state(run))
    assert same(restored, state.replace(step=np.int32(3)))
    leaf = jax.tree.leaves(restored.params)[0]
    assert len(leaf.sharding.device_set) == 4


def test_read_gives_numpy_from_workdir_folder_or_step(state, workdir):
    for path in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "3"):
        read, meta = checkpoint.read(path)
        assert meta["step"] == 3
        assert same(read["params"], state.params)
        assert same(read["target_batch_stats"], state.target_batch_stats)
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(read["params"]))


def test_write_makes_a_resumable_workdir_and_refuses_to_overwrite(run, state, tmp_path):
    target = tmp_path / "imported"
    checkpoint.write(target, state.replace(step=np.int32(7)), {"config": {}})
    with Checkpointer(target, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 7
    with pytest.raises(UserError, match="already holds checkpoints"):
        checkpoint.write(target, state, {"config": {}})


def test_what_is_not_a_checkpoint_is_said_to_be_none(tmp_path, workdir):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a checkpoint: no checkpoints/STEP/state"):
        checkpoint.read(tmp_path)
    damaged = tmp_path / "damaged"
    (damaged / "checkpoints" / "5" / "state").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints/5 is damaged: sha256.json is missing"):
        checkpoint.read(damaged)


def test_folders_with_names_that_only_look_like_numbers_are_left_alone(tmp_path):
    odd = tmp_path / "checkpoints" / "²" / "state"
    odd.mkdir(parents=True)
    with pytest.raises(UserError, match="is not a checkpoint: no checkpoints/STEP/state in it"):
        checkpoint.read(tmp_path)
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() is None
    assert odd.is_dir()


def test_another_architecture_is_refused(workdir):
    other = make_run(width=8)
    with (
        Checkpointer(workdir, keep=2) as checkpointer,
        pytest.raises(UserError, match="step 3 does not fit this config"),
    ):
        checkpointer.restore(program.abstract_state(other))


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip_one_bit, "has changed"),
        (cut_in_half, "bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    harm, message, run, state, workdir, tmp_path, capsys
):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    harm(largest_file(copy / "checkpoints" / "3"))
    with pytest.raises(UserError, match=f"checkpoints/3 is damaged: .*{message}"):
        checkpoint.read(copy)
    with Checkpointer(copy, keep=2) as checkpointer:
        restored, meta = checkpointer.restore(program.abstract_state(run))
        assert meta["step"] == 2 and same(restored, state.replace(step=np.int32(2)))
        said = capsys.readouterr().err
        assert "step 3 is damaged" in said and message in said and "the one before" in said
        assert (copy / "damaged_checkpoints" / "3" / "state").is_dir()
        checkpointer.save(state.replace(step=np.int32(3)), meta)  # the run comes by again
    assert checkpoint.read(copy)[1]["step"] == 3
    for step in ("2", "3"):
        harm(largest_file(copy / "checkpoints" / step))
    for _ in range(2):  # also the second start must not begin anew
        with (
            Checkpointer(copy, keep=2) as checkpointer,
            pytest.raises(UserError, match=r"no checkpoint in .* is intact \(step 3: "),
        ):
            checkpointer.restore(program.abstract_state(run))
        assert {p.name for p in (copy / "checkpoints").iterdir()} == {"2", "3"}


def test_a_seal_that_does_not_list_what_is_there_is_damage(workdir, tmp_path):
    step = tmp_path / "copy/checkpoints/3"
    shutil.copytree(workdir / "checkpoints/3", step)
    seal = step / integrity.FILE
    whole = json.loads(seal.read_text())
    (step / "state" / ".nfs000123").write_bytes(b"x")  # what a file system puts there
    (step / "notes.txt").write_bytes(b"x")
    assert integrity.damage(step) is None
    some = {name: x for name, x in whole.items() if name.startswith("meta/")}
    for content, message in (
        ({}, "sha256.json lists no file"),
        (some, "sha256.json does not list state/"),
        (dict(list(whole.items())[1:]), f"sha256.json does not list {next(iter(whole))}"),
    ):
        seal.write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"checkpoints/3 is damaged: {message}"):
            checkpoint.read(tmp_path / "copy")


def test_an_empty_folder_has_nothing_to_restore(run, tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(program.abstract_state(run)) is None


def test_a_disk_that_is_full_costs_no_older_checkpoint(state, tmp_path, capsys, monkeypatch):
    meta = {"config": {}}
    folder = tmp_path / "checkpoints"  # in which threads of the failed save may still write
    files = lambda: sorted(p.name for p in folder.iterdir() if p.name.isdigit())  # noqa: E731
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        checkpointer.save(state.replace(step=np.int32(1)), meta)
        checkpointer.wait()
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))  # writing fails midway
        try:
            checkpointer.save(state.replace(step=np.int32(2)), meta)
            with pytest.raises(
                CannotSave, match="of step 2 was not written, .* newest is of step 1"
            ):
                checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert files() == ["1"]
        assert "step 2 was not written" in capsys.readouterr().err
        with monkeypatch.context() as full:
            usage = shutil.disk_usage(tmp_path)._replace(free=1000)
            full.setattr(storage.shutil, "disk_usage", lambda _: usage)
            checkpointer.save(state.replace(step=np.int32(3)), meta)
        assert "step 3 was not written: it takes" in capsys.readouterr().err
        checkpointer.save(state.replace(step=np.int32(4)), meta)  # there is room again
        checkpointer.wait()
    assert files() == ["1", "4"]
    assert checkpoint.read(tmp_path)[1]["step"] == 4


def test_a_save_that_fails_at_once_is_not_waited_for(state, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mcl_jax.runtime.checkpointer.PATIENCE_S", 1.0)
    folder, aside = tmp_path / "checkpoints", tmp_path / "aside"
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(state.replace(step=np.int32(1)), {})
        checkpointer.wait()
        folder.rename(aside)
        folder.write_bytes(b"")  # a file where the folder was: nothing can be made in it
        checkpointer.save(state.replace(step=np.int32(2)), {})
        folder.unlink()
        aside.rename(folder)
        checkpointer.save(state.replace(step=np.int32(3)), {})
        monkeypatch.setattr("mcl_jax.runtime.checkpointer.PATIENCE_S", 60.0)
        checkpointer.wait()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the checkpoint of step 2 was not written" in said
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]


def test_a_run_ends_after_three_failures_in_a_row_and_those_of_one_outage_count_once(
    tmp_path, capsys
):
    failed = FailedSaves(tmp_path)
    failed.left_out(4, saving=2, waited_s=120.0)
    failed.left_out(6, saving=2, waited_s=120.0)
    failed.failed(2, OSError("away"))  # for which the two were left out
    failed.demand_hope(newest=None)
    assert capsys.readouterr().err.splitlines() == [
        "the checkpoint of step 2 is still being written after 120 s; that of step 4 is left out",
        "the checkpoint of step 2 is still being written after 120 s; that of step 6 is left out",
        "the checkpoint of step 2 was not written: away",
    ]
    failed.failed(None, OSError("another part of it"))
    assert capsys.readouterr().err == ""
    failed.succeeded()
    for step in (10, 12, 14):
        failed.demand_hope(newest=8)
        failed.failed(step, OSError("full"))
    with pytest.raises(
        CannotSave, match="3 checkpoints in a row .* newest is of step 8. Make room"
    ):
        failed.demand_hope(newest=8)
    with pytest.raises(CannotSave, match="could not be written, see above; there is none. Make"):
        failed.demand_hope(newest=None)
    with pytest.raises(CannotSave, match="14 was not written, see above; there is none. Make room"):
        failed.demand_last(newest=None)
    failed.demand_last(newest=16)
    with pytest.raises(CannotSave, match="of step 14 was not written, .* newest is of step 8"):
        failed.demand_last(newest=8)
