"""Metric lines survive a kill and a resume; rates and pictures."""

import json
import resource
from types import SimpleNamespace

import numpy as np

from mcl_jax import montage
from mcl_jax.report import metrics, plots, throughput
from mcl_jax.runtime import optional


def test_a_resumed_run_drops_the_lines_it_will_redo_and_a_line_cut_by_a_kill(tmp_path):
    first = metrics.MetricWriter(tmp_path, 0, enabled=True)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 7})
    first.close()
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 4, "lo')
    again = metrics.MetricWriter(tmp_path, 2, enabled=True)
    again.write(3, {"loss": 0.5})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1 / 7},
        {"step": 2, "loss": 2 / 7},
        {"step": 3, "loss": 0.5},
    ]


def test_other_processes_write_nothing(tmp_path):
    metrics.MetricWriter(tmp_path, 0, enabled=False).write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_costs_no_line_once_there_is_room_again(tmp_path, capsys):
    optional.begin()
    writer = metrics.MetricWriter(tmp_path, 0, enabled=True)
    writer.write(1, {"loss": 0.5})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / metrics.FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, unlimited[1]))  # a part of a line fits
    try:
        writer.write(2, {"loss": 0.25})
        writer.write(3, {"loss": 0.125})
        with optional.optional("curves.png"):
            plots.curves(tmp_path / "curves.png", metrics.read(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1]
    assert not list(tmp_path.glob("curves*"))
    writer.write(4, {"loss": 0.0})
    writer.close()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["metrics.jsonl", "curves.png"]
    assert all("not written, the run goes on without" in line for line in said)


def test_throughput_counts_images_and_waiting(monkeypatch):
    # start; waits from 1 to 3 and 3 to 4 in vain, and from 4 to 6 while devices compute; read at 12
    now = iter([0.0, 1.0, 3.0, 3.0, 4.0, 4.0, 12.0, 12.0])
    # the module's own clock: other threads ask the real one
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: next(now)))
    meter = throughput.Throughput(batch_size=24, step=10)
    done, busy = (SimpleNamespace(is_ready=lambda x=x: x) for x in (True, False))
    for results in ({}, {"loss": done}, {"loss": busy, "top1": done}):
        with meter.waiting(results):
            pass
    assert meter.read(20) == {"images_per_s": 20.0, "data_wait": 0.25}


def test_pictures_show_every_level_and_curve(tmp_path):
    import matplotlib.image

    canvases = np.random.default_rng(0).normal(size=(7, 32, 32, 3))
    plots.sheet(
        tmp_path / "m.png",
        montage.rows(canvases, (4, 2, 1)),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        columns=3,
    )
    lines = [{"step": 0, "knn": 0.1}, {"step": 1, "loss": 2.0, "loss/level0": 1.0, "lr": 0.1}]
    plots.curves(tmp_path / "c.png", lines)
    for name in ("m.png", "c.png"):
        picture = matplotlib.image.imread(tmp_path / name)
        assert picture.shape[0] > 300 and picture[..., :3].std() > 0.05
