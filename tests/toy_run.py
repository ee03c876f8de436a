"""Runs that cost little but their steps: `mcl-jax pretrain` around a network of a few weights.

What is tested with them (workdirs, signals, outages) does not depend on the network. `Run` is a
process of its own, forked from one that has imported everything, so that it starts in a second.
"""

import asyncio
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax

from mcl_jax import program, sharding
from mcl_jax.commands import main
from mcl_jax.keys import Purpose, key_for
from mcl_jax.objectives.base import Outcome, Variables
from mcl_jax.runtime import storage

SIDE = 8
# not gcsfs: it looks at STORAGE_EMULATOR_HOST when it is imported
PRELOADED = ("toy_run", "mcl_jax.api", "mcl_jax.train", "mcl_jax.commands.pretrain")
PRELOADED += ("tensorboardX", "matplotlib.pyplot")
SETTINGS = {
    "data.dataset": "scenes",
    "data.split": "train[:32]",
    "data.batch_size": 16,
    "data.image_size": 32,
    "data.canvas_size": 32,
    "data.threads": 1,
    "model.width": 4,
    "knn.every_epochs": 0.0,
    "optimizer.name": "sgd",
    "optimizer.warmup_epochs": 0.0,
    "log.montages": 0,
    "log.every_steps": 1,
    "log.checkpoint_steps": 2,
    "log.progress_s": 3600.0,  # one line, at the end
}


@dataclass(frozen=True)
class Brightness:
    """Learns how bright noisy images are; a loss tells seed, step, images and all steps before."""

    images_per_device: int

    has_target = negatives_of_step = False
    batch_fields = ("image",)
    encoder = None
    trained_levels = ()

    def init(self, key):
        return Variables({"encoder": {"kernel": jax.random.normal(key, (SIDE * SIDE,))}}, {}, {})

    def inputs(self, seed, step, batch, shard):
        image = batch["image"].mean(-1) / 255
        parts = image.reshape(len(image), SIDE, image.shape[1] // SIDE, SIDE, -1).mean((2, 4))
        noise = jax.random.normal(key_for(seed, step, shard, Purpose.AUGMENT), parts.shape)
        return (parts + 0.1 * noise).reshape(len(image), -1)

    def loss(self, params, state, inputs, axis_name):
        error = inputs @ params["encoder"]["kernel"] - inputs.mean(1)
        return (error**2).mean(), Outcome({}, {}, {}, {})


def replace_network(setattr=setattr, devices=None):
    """From here on, every run of this process trains `Brightness`.

    Args:
      setattr: pytest's monkeypatch.setattr, if it is to end.
      devices: how many to train on; None: all.
    """
    mesh_of = sharding.make_mesh
    setattr(program, "make_objective", lambda config, images, norm_axis: Brightness(images))
    setattr(sharding, "mesh_for", lambda config: mesh_of(jax.devices()[:devices]))


class Run:
    """A process with `mcl-jax pretrain`; its messages go to a file.

    Args:
      log: the file.
      flags: after SETTINGS, so that they win.
      server: for STORAGE_EMULATOR_HOST.
      devices: of the process.
      constants: 'module.NAME' of mcl_jax -> value.
      hurry: by which the waits between gcsfs's tries are divided.
    """

    def __init__(
        self,
        log: Path,
        *flags: str,
        server: str,
        devices: int = 1,
        constants: Mapping[str, Any] = {},
        hurry: float = 1.0,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        command = ["pretrain", "--config=demo", *settings, *flags]
        arguments = (command, log, server, devices, dict(constants), hurry)
        self._log = log
        self._process = context.Process(target=_main, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def end(self, limit_s: float = 200) -> tuple[int, str]:
        """(exit code, its messages and those of runs before); one that hangs fails the test."""
        self._process.join(limit_s)
        hangs = self._process.is_alive()
        if hangs:
            self._process.kill()
            self._process.join()
        text = self._log.read_text(errors="replace")
        assert not hangs, f"hung for {limit_s:.0f} s:\n{text}"
        return self._process.exitcode, text


def _main(command, log, server, devices, constants, hurry):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ["STORAGE_EMULATOR_HOST"] = server
    count = f"device_count={devices}"
    os.environ["XLA_FLAGS"] = re.sub(r"device_count=\d+", count, os.environ["XLA_FLAGS"])
    storage.locate("gs://mcl")
    import gcsfs.retry

    gcsfs.retry.asyncio = SimpleNamespace(sleep=lambda s: asyncio.sleep(s / hurry))
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        setattr(sys.modules[f"mcl_jax.{module}"], constant, value)
    replace_network()
    main.main(command)
