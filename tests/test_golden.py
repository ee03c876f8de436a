"""A recorded run: the losses of 20 steps in float64 stay what they were at version 0.1.0.

Recorded at commit 492e3e0 by `python tests/test_golden.py`; the file is written anew only when a
change of the method is meant, and the commit says so.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from conftest import tiny_config

from mcl_jax import program, sharding
from mcl_jax.bench.parity import widened
from mcl_jax.train_step import train_step

GOLDEN = Path(__file__).parent / "data" / "golden_losses.json"
STEPS = 20


def losses() -> list[float]:
    """Of 20 steps of MCL with three levels on noise, one device, LARS."""
    config = tiny_config()
    config.data.batch_size = 16
    config.montage.levels = 3
    config.numerics.compute_dtype = "float64"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.epochs = float(STEPS)
    mesh = sharding.mesh_for(config, jax.devices()[:1])
    run = program.build(config, mesh, images=config.data.batch_size)
    step = jax.jit(sharding.per_device(partial(train_step, run=run), mesh))
    batch = sharding.put_batch(program.random_batch(run), mesh)
    state = widened(program.new_state(run))
    state = jax.device_put(state, sharding.replicated(mesh))  # as the step returns it: one program
    stream = []
    for _ in range(STEPS):
        state, metrics = step(state, batch, program.seed_argument(run))
        stream.append(float(metrics["loss"]))
    return stream


def test_losses_of_twenty_steps_are_the_recorded_ones():
    with jax.enable_x64(True):
        stream = losses()
    np.testing.assert_allclose(stream, json.loads(GOLDEN.read_text()), rtol=1e-9)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    json.dump(losses(), sys.stdout, indent=1)
