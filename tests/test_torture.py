"""Runs survive what breaks them; scripts/torture.py does the same, longer."""

import itertools
from pathlib import Path

import command_line
import jax
import pytest
from conftest import QUICK_COMPILE, tiny_config
from stand_in_backbone import use_stand_in_backbone

from mcl_jax import exit_codes, sharding, train
from mcl_jax.faults import data, folders, runs, torture


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Runs of a network that compiles fast; scripts/torture.py runs a real one."""
    smallest = (
        "model.neck=c4",
        "montage.levels=1",
        "data.image_size=32",
        "data.canvas_size=32",
        "knn.every_epochs=0.0",
    )
    return runs.TortureJob(
        tmp_path_factory.mktemp("torture"),
        flags=tuple(f"--config.{flag}" for flag in smallest),
        program=(str(Path(__file__).with_name("stand_in_pretrain.py")),),
        xla_flags=QUICK_COMPILE,
    )


def test_killed_runs_repeat_the_uninterrupted_one_bit_by_bit(job):
    assert list(torture.kills(job, 1, seed=1, aims=("saving",)))


def test_sigterm_leaves_with_75_and_nothing_lost(job):
    outcomes = dict(torture.terminations(job, ("compiling", "stepping")))
    assert outcomes["compiling"] == "nothing to save" and outcomes["stepping"].endswith("saved")


def test_a_second_run_in_a_workdir_is_refused_and_the_first_ends_as_alone(job):
    refused, first = itertools.islice(folders.second_owner(job), 2)
    assert "is in use: host " in refused and "same losses" in first


def test_a_disk_without_room_for_a_byte_ends_a_run_with_one_line_and_code_5(job):
    (last,) = itertools.islice(folders.disk_full(job), 1)
    assert "checkpoints in a row could not be written" in last


def test_mistakes_in_flags_are_one_line_each(tmp_path):
    said = data.mistakes(runs.TortureJob(tmp_path))
    assert len(said) == 6 and all(line.startswith("error: ") for line in said)


def test_the_command_runs_chosen_scenarios_and_says_what_survived(tmp_path, capsys):
    chosen = f"--scratch={tmp_path}", "--images=12", "--scenarios=worker-killed,images"
    assert command_line.run("torture", *chosen) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "images: survived" and "worker-killed: survived" in lines
    assert command_line.run("torture", "--scenarios=flood") == exit_codes.USER_ERROR
    assert "--scenarios 'flood' is not one of kills, " in capsys.readouterr().err


def test_a_run_that_does_not_survive_is_noticed(job):
    workdir = job.scratch / "wrong"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(runs.Broken, match=r"losses of steps \[1\] differ"):
        torture._require_whole(workdir, {1: 1.0})
    (workdir / "cut.tmp").touch()
    with pytest.raises(runs.Broken, match=r"left behind \['cut.tmp'\]"):
        torture._require_whole(workdir, {1: 2.0})


def test_twelve_kinds_of_odd_and_broken_images(tmp_path):
    said = data.images(tmp_path / "images", 120, seed=0)
    assert len(said) == 12 and sum("refused" in line for line in said) == 8


def test_a_killed_decoding_worker_costs_no_batch(caplog):
    data.worker_killed(seed=0)
    assert "a decoding worker died" in caplog.text


@pytest.mark.usefixtures("compile_cache")
def test_other_numbers_of_devices_continue_a_run(tmp_path, monkeypatch):
    """4 devices, or 2 and then 4: the same batches, views and montages, losses equal to rounding."""
    use_stand_in_backbone(monkeypatch)
    config = tiny_config()
    config.data.split, config.data.batch_size, config.data.group_size = "train[:32]", 16, 4
    config.data.image_size = config.data.canvas_size = 32
    config.model.neck, config.model.head_convs, config.montage.levels = "c4", 1, 1
    # Small steps: rounding decides on which side of a ReLU's corner some of 100,000 values lie, and
    # one that changes sides changes the gradient by 1e-3.
    config.optimizer.name, config.optimizer.base_lr = "sgd", 0.005
    config.optimizer.epochs, config.optimizer.warmup_epochs = 2.0, 0.0
    config.log.every_steps, config.log.checkpoint_steps, config.log.montages = 1, 2, 0
    config.numerics.compute_dtype = "float32"

    def pretrain(workdir, devices, stop_after=None):
        monkeypatch.setattr(
            sharding,
            "mesh_for",
            lambda _: sharding.make_mesh(jax.devices()[:devices]),
        )
        train.pretrain(config, workdir, stop_after=stop_after)
        return runs.losses(workdir)

    with jax.enable_x64(False):
        whole = pretrain(tmp_path / "whole", 4)
        for devices, stop_after in ((2, 2), (4, None)):
            stream = pretrain(tmp_path / "changing", devices, stop_after)
            # sums over devices in another order, float32
            assert stream == pytest.approx({s: whole[s] for s in stream}, rel=2e-5)
    assert list(stream) == list(range(1, 5))
