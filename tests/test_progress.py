"""Progress: lines in a log file, a bar on a terminal; a page that loads itself again; traces."""

import io
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from mcl_jax.errors import UserError
from mcl_jax.report import card, metrics, profile, run_page
from mcl_jax.report.progress import Bar
from mcl_jax.runtime import storage


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(stream, monkeypatch, every_s, pause_s=0.0):
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar(total=6, initial=2, unit="step", every_s=every_s) as bar:
        for _ in range(4):
            time.sleep(pause_s)
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    return stream.getvalue()


def test_a_log_file_gets_whole_lines_now_and_then(monkeypatch):
    text = told(io.StringIO(), monkeypatch, every_s=0.03, pause_s=0.02)
    lines = text.splitlines()
    assert "\r" not in text and text.endswith("\n") and 2 <= len(lines) <= 4
    assert all("/6, " in line and "step/s" in line and line.endswith(" left") for line in lines)
    assert lines[-1].startswith("6/6, ") and "loss 1.5" in lines[-1]


def test_a_quick_run_says_one_line_and_one_that_did_nothing_none(monkeypatch):
    assert told(io.StringIO(), monkeypatch, every_s=60).count("\n") == 1
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Bar(total=6, initial=6, unit="step"):
        pass
    with Bar(total=6, disable=True) as bar:
        bar.update(6)
    assert sys.stderr.getvalue() == ""


def test_a_lines_rate_is_that_since_the_line_before(monkeypatch):
    """The first step of a run may take a minute more than all others."""
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Bar(total=50, unit="step", every_s=60) as bar:
        for seconds in (80, *49 * [0.5]):
            clock[0] += seconds
            bar.update()
    first, last = sys.stderr.getvalue().splitlines()
    assert first == "1/50, 80.00s/step, 1:05:20 left"
    assert last == "50/50, 2.00step/s, 00:00 left"


def test_a_line_names_its_work_and_promises_no_end_that_nobody_knows(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in Bar(range(3), "bank", unit="batch"):
        pass
    for _ in Bar(iter(range(4)), "train", unit=" images"):
        pass
    known, unknown = sys.stderr.getvalue().splitlines()
    assert known.startswith("bank: 3/3, ") and known.endswith("batch/s, 00:00 left")
    assert unknown.startswith("train: 4 images, ") and unknown.endswith("images/s")


def test_a_terminal_gets_a_bar(monkeypatch):
    text = told(Terminal(), monkeypatch, every_s=60)
    assert "\r" in text and "6/6" in text and "%|" in text


@pytest.fixture
def page(tmp_path):
    from mcl_jax.configs import base

    (tmp_path / metrics.FILE).write_text('{"step": 3, "loss": 1.5}\n')
    return lambda every_s: run_page.RunPage(
        base.get_config().to_dict(), tmp_path, total_steps=10, every_s=every_s
    )


def test_a_page_loads_itself_again_while_the_run_goes_on(page, tmp_path):
    running = page(0.01)
    running.refresh()  # too early
    assert not (tmp_path / card.FILE).exists()
    time.sleep(0.02)
    running.refresh()
    deadline = time.monotonic() + 60
    while not (tmp_path / card.FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    text = (tmp_path / card.FILE).read_text()
    assert '<meta http-equiv="refresh" content="1">' in text and "step 3 of 10, running" in text
    running.close()
    text = (tmp_path / card.FILE).read_text()
    assert "http-equiv" not in text and "step 3 of 10<" in text


def test_a_page_of_0_seconds_is_written_at_the_end_alone(page, tmp_path):
    running = page(0)
    running.refresh()
    assert not (tmp_path / card.FILE).exists()
    running.close()
    assert (tmp_path / card.FILE).exists()


def run(window, steps):
    program = jax.jit(lambda x: jnp.sin(x @ x)).lower(jnp.ones((64, 64))).compile()
    x = jnp.ones((64, 64))
    for step in range(1, steps + 1):
        window.before(step, x)
        x = program(x)
        window.after(step, x, program)
    window.close()


def test_some_steps_are_traced_and_the_longest_operations_told(tmp_path, capsys):
    run(profile.Window((2, 3), tmp_path / "trace"), 4)
    said = capsys.readouterr().err
    assert f"trace of 2 steps in {tmp_path / 'trace'}" in said and "operations:" in said
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    run(profile.Window(None, tmp_path / "none"), 2)
    assert not (tmp_path / "none").exists()


def test_a_trace_goes_into_a_bucket_too(gcs, tmp_path, capsys, monkeypatch):
    workdir = storage.locate("gs://mcl/traced")
    monkeypatch.chdir(tmp_path)
    run(profile.Window((2, 2), workdir / "profile"), 2)
    assert "trace of 1 steps in gs://mcl/traced/profile" in capsys.readouterr().err
    assert any(name.endswith(".xplane.pb") for name in storage.stats(workdir))
    assert not list(tmp_path.iterdir())  # no folder of the name gs:


def test_a_run_that_ends_inside_closes_its_trace(tmp_path, capsys):
    run(profile.Window((2, 9), tmp_path / "trace"), 3)
    assert "the run ended inside the trace" in capsys.readouterr().err
    jax.profiler.start_trace(tmp_path / "next")  # none is open
    jax.profiler.stop_trace()


def test_the_flag_names_two_steps():
    read = profile.first_and_last
    assert read("20:25") == (20, 25) and read("3:3") == (3, 3)
    for text in ("20", "0:3", "5:4", "a:b", "1:2:3", "-1:3"):
        with pytest.raises(UserError, match="is not FIRST:LAST"):
            read(text)
