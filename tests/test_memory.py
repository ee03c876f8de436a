"""A step that has no room on its devices is refused before it runs; running out is one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from mcl_jax import cli, program, train
from mcl_jax.errors import UserError
from mcl_jax.runtime import memory


def lowered(side=256):
    x = jax.ShapeDtypeStruct((side, side), jnp.float32)
    return jax.jit(lambda x: jnp.sin(x @ x) @ x).lower(x)


def test_peak_counts_arguments_temporaries_and_results():
    peak = memory.peak_bytes(lowered().compile())
    assert 2 * 256**2 * 4 <= peak <= 8 * 256**2 * 4


def test_the_cpus_of_a_machine_share_its_memory(tmp_path, monkeypatch):
    device = jax.local_devices()[0]
    assert memory.room_bytes(device) > 2**20
    text = "MemTotal:       80 kB\nMemFree: 7 kB\nSwapTotal:      16 kB\n"
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert memory.room_bytes(device) == 96 * 1024 // 8
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.room_bytes(device) == 96 * 1024 // 8
    (tmp_path / "memory.max").write_text("8000\n")
    assert memory.room_bytes(device) == 1000
    (tmp_path / "memory.max").unlink()
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "nothing")
    assert memory.room_bytes(device) == 0


def test_a_run_without_room_ends_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "lower_step", lambda run: lowered())
    monkeypatch.setattr(memory, "room_bytes", lambda device: 2**10)
    with pytest.raises(UserError, match=r"needs 0\.0 GiB on every device, .* data\.batch_size"):
        train.pretrain(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    monkeypatch.setattr(memory, "room_bytes", lambda device: 0)  # unknown
    memory.demand_room(lowered().compile())


@pytest.mark.parametrize(
    "error, told",
    [
        (
            RuntimeError(
                "INTERNAL: Error dispatching computation: Out of memory allocating 99 bytes."
            ),
            "out of memory: 99 bytes were asked for at once. A smaller batch",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.5GiB."),
            "out of memory: 9.5GiB were asked for",
        ),
        (MemoryError(), "out of memory. A smaller batch or smaller images need less"),
    ],
)
def test_running_out_of_memory_is_one_line(error, told, capsys):
    def work():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.guarded(work)
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {told}")


def test_the_words_of_numpy_are_known(capsys):
    with pytest.raises(SystemExit):
        cli.guarded(lambda: np.ones(2**60, np.int8))
    assert "out of memory: 1.00 EiB were asked for" in capsys.readouterr().err
