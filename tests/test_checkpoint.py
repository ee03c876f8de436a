"""Checkpoints: bit-exact round trip, the newest kept, clear errors, other device counts."""

import jax
import numpy as np
import pytest
from conftest import tiny_config

from mcl_jax import checkpoint, program
from mcl_jax.errors import UserError


def make_run(devices=1, **model):
    config = tiny_config()
    config.data.batch_size = 16
    config.model.update(model)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ("data",))
    return program.build(config, mesh, images=64)


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def state(run):
    rng = np.random.default_rng(0)  # every leaf its own values: no two could be mixed up
    zero = jax.tree.map(np.asarray, program.new_state(run))
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.dtype == np.float32 else x, zero
    )


@pytest.fixture(scope="module")
def workdir(run, state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    meta = {"config": program.plain_config(run.config)}
    with checkpoint.Checkpointer(folder, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(state.replace(step=np.int32(step)), meta)
    return folder


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_the_newest_are_kept_and_restored_bit_by_bit(run, state, workdir):
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    with checkpoint.Checkpointer(workdir, keep=2) as checkpointer:
        restored, meta = checkpointer.restore(program.abstract_state(run))
    assert same(restored, state.replace(step=np.int32(3)))
    assert meta["step"] == 3 and meta["config"]["model"]["width"] == 4


def test_another_number_of_devices_restores_the_same_values(state, workdir):
    run = make_run(devices=4)
    with checkpoint.Checkpointer(workdir, keep=2) as checkpointer:
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
    with checkpoint.Checkpointer(target, keep=1) as checkpointer:
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
    with pytest.raises(UserError, match="checkpoints/5 cannot be read"):
        checkpoint.read(damaged)


def test_another_architecture_is_refused(workdir):
    other = make_run(width=8)
    with (
        checkpoint.Checkpointer(workdir, keep=2) as checkpointer,
        pytest.raises(UserError, match="step 3 does not fit this config"),
    ):
        checkpointer.restore(program.abstract_state(other))
