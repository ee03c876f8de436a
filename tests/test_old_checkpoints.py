"""Checkpoints of version 0.1.0, under keys that were renamed since, still load.

tests/data/run_0.1.0 was written at commit 492e3e0 by scripts/pretrain.py: a ResNet-18 of width 4,
two levels, four steps on the built-in scenes.
"""

import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mcl_jax import program, sharding
from mcl_jax.convert.command import main
from mcl_jax.convert.names import architectures
from mcl_jax.errors import UserError
from mcl_jax.runtime import checkpoint
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.runtime.renamed_keys import RENAMED, modern

OLD = Path(__file__).parent / "data" / "run_0.1.0"
DAMAGED = 120  # copies


@pytest.fixture
def workdir(tmp_path):
    """A copy: opening a run may tidy its folder."""
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_keys_are_todays(workdir):
    config = checkpoint.read(workdir)[1]["config"]
    for section, names in RENAMED.items():
        for old, new in names.items():
            assert old not in config[section] and new in config[section]
    assert config["knn"]["neighbors"] == 20


def test_the_run_goes_on_from_what_is_read(workdir):
    state, meta = checkpoint.read(workdir)
    config = ConfigDict(meta["config"])
    run = program.build(config, sharding.make_mesh(jax.devices()[:1]), images=32)
    with Checkpointer(workdir, keep=1) as checkpointer:
        restored, _ = checkpointer.restore(program.abstract_state(run))
    assert int(restored.step) == 4 and run.total_steps == 4
    for own, read in zip(
        jax.tree.leaves(restored.params), jax.tree.leaves(state["params"]), strict=True
    ):
        np.testing.assert_array_equal(own, read)


def test_it_can_be_exported(workdir, tmp_path):
    main([str(workdir), "--to", "detectron2", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.txt").is_file()


def test_a_config_without_renamed_sections_stays_as_it_is():
    assert modern({"seed": 0, "knn": {"neighbors": 5}}) == {"seed": 0, "knn": {"neighbors": 5}}


def test_keys_that_are_younger_than_it_get_their_defaults(workdir, tmp_path):
    meta = checkpoint.read(workdir)[1]
    plain = program.plain_config(meta["config"])
    assert "svm" not in plain
    del plain["numerics"]["bn_devices"], plain["data"]["group_size"]
    plain["data"]["a_key_of_then"] = 1
    assert architectures.on_one_device(plain).total_steps >= 1
    main([str(workdir), "--to", "safetensors", "--out", str(tmp_path / "out")])


def damage(path, r):
    """Spoils a file, or takes it away."""
    data, at = bytearray(path.read_bytes()), r.randrange(max(1, path.stat().st_size))
    match r.randrange(6):
        case 0:
            data = data[:at]
        case 1:
            data[at : at + 1] = bytes([r.randrange(256)])
        case 2:
            data[at : at + r.randrange(64)] = r.randbytes(r.randrange(64))
        case 3:
            data = b""
        case 4:
            data = b"{}"
        case 5:
            return path.unlink()
    path.write_bytes(data)


def test_damaged_files_of_a_checkpoint_are_read_or_refused_in_one_line(tmp_path):
    r, outcomes = random.Random(0), []
    for number in range(DAMAGED):
        run = Path(shutil.copytree(OLD, tmp_path / str(number)))
        files = sorted(path for path in run.rglob("*") if path.is_file())
        for path in r.sample(files, r.choice((1, 1, 2))):
            damage(path, r)
        try:
            checkpoint.read(run)
            outcomes.append("read")
        except UserError as error:
            outcomes.append("refused")
            assert "\n" not in str(error) and "Traceback" not in str(error), error
        shutil.rmtree(run)
    print({kind: outcomes.count(kind) for kind in ("read", "refused")})
    assert outcomes.count("refused") > DAMAGED / 2 and "read" in outcomes
