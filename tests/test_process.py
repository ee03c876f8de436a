"""A library call leaves the process as it found it."""

import signal
import subprocess
import sys

import jax
import pytest
import toy_run

import mcl_jax
from mcl_jax.runtime import checkpoint
from mcl_jax.runtime.compile_cache import compile_cache
from mcl_jax.runtime.preemption import Preemption


def test_importing_everything_changes_nothing_in_the_process():
    code = """
import logging, signal, sys
import cv2, jax, matplotlib, orbax.checkpoint as ocp
before = lambda: (
    matplotlib.get_backend(), cv2.getNumThreads(), cv2.utils.logging.getLogLevel(),
    jax.config.jax_compilation_cache_dir, signal.getsignal(signal.SIGTERM), logging.root.handlers[:],
    id(ocp.type_handlers.get_type_handler(jax.Array)),
)
state = before()
import importlib, pkgutil, mcl_jax
for package in ('views', 'objectives', 'data', 'runtime', 'report', 'evaluate', 'study', 'models'):
    package = importlib.import_module('mcl_jax.' + package)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        importlib.import_module(module.name)
import mcl_jax.train
assert before() == state, (before(), state)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_compile_cache_is_set_and_put_back(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    least_s = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with compile_cache(tmp_path):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path)
            assert jax.config.jax_persistent_cache_min_compile_time_secs == 0  # small ones too
        assert jax.config.jax_compilation_cache_dir is None
        assert jax.config.jax_persistent_cache_min_compile_time_secs == least_s > 0
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        with compile_cache(tmp_path):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("owner", [True, False])
def test_handlers_are_put_back(owner):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Preemption(owner=owner):
        assert signal.getsignal(signal.SIGINT) is not before[0]
        assert (signal.getsignal(signal.SIGTERM) is before[1]) == (not owner)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_a_notebook_the_first_interrupt_is_a_request_and_the_second_an_interrupt():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's worker ignores it
    try:
        with Preemption(owner=False) as preemption:
            assert not preemption.requested_after(1)
            signal.raise_signal(signal.SIGINT)
            assert preemption.requested_after(2)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_a_library_call_saves_and_returns(tmp_path, monkeypatch):
    toy_run.replace_network(monkeypatch.setattr, devices=1)
    config = mcl_jax.load_config("demo", **toy_run.SETTINGS | {"log.checkpoint_steps": 1000})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(step, values):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    try:
        state = mcl_jax.pretrain(config, tmp_path / "run", callbacks=[interrupt])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    step = int(state.step)
    assert 3 <= step <= 5 < config.optimizer.epochs * 2  # a step or two were under way
    assert checkpoint.read(tmp_path / "run")[1]["step"] == step
    assert int(mcl_jax.pretrain(config, tmp_path / "run", stop_after=1).step) == step + 1
