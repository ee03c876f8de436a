"""bench start: clocks from the command to the first step, with a cold and a warm compile cache."""

import re
from pathlib import Path

import pytest
from conftest import QUICK_COMPILE

from mcl_jax.bench import commands, start
from mcl_jax.configs import base

REPO = Path(__file__).resolve().parent.parent
TINY = {
    "method": "byol",  # the quickest to compile
    "data.dataset": "scenes",
    "data.split": "train[:32]",
    "data.batch_size": 16,
    "data.image_size": 32,
    "data.canvas_size": 32,
    "model.width": 4,
    "model.fpn_channels": 8,
    "model.head_convs": 1,
    "montage.levels": 1,
    "log.montages": 0,
    "knn.every_epochs": 0.0,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", QUICK_COMPILE)


def arguments(**changed):
    values = TINY | changed
    return [f"--config={REPO}/configs/demo.py", *(f"--config.{k}={v}" for k, v in values.items())]


def test_every_phase_of_a_start_is_timed():
    result = start.measure(arguments(), seconds=1500.0)
    for rows in (result["cold"], result["warm"]):
        assert [row["phase"] for row in rows] == list(start.PHASES)
        assert all(0 <= row["main_thread_cpu_s"] <= row["cpu_s"] + 0.1 for row in rows)
        assert rows[3]["cpu_s"] > 0.1  # a step is not traced in less
    text = start.as_text(result | {"door_ms": start.door_ms(base.get_config(), repeats=1)})
    assert all(phase in text for phase in start.PHASES)
    assert re.search(r"checking the configuration: \d+\.\d\d ms", text)


def test_a_start_that_fails_says_why():
    said = "(?s)the cold start: exit code 2, .*no such folder"
    with pytest.raises(commands.CommandFailed, match=said):
        start.measure(arguments(**{"data.dataset": "folder:/no such folder"}), seconds=600.0)
