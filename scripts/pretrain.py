"""Pre-trains: python scripts/pretrain.py --config configs/demo.py --workdir runs/demo

The same command resumes. Any key of configs/base.py can be set: --config.optimizer.epochs=200
"""

import logging
import os
import sys
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and pictures")
STOP_AFTER = flags.DEFINE_integer(
    "stop_after", None, "save and stop after this many steps of this run", lower_bound=1
)
PROCESSES = flags.DEFINE_bool(
    "distributed", False, "several hosts: call jax.distributed.initialize() first"
)

UNHEALTHY = 3  # exit code of NaN and collapse


def main(_: Sequence[str]) -> int:
    import jax

    from mcl_jax import train
    from mcl_jax.health import TrainingStopped

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = cli.config_of(CONFIG)
    workdir = train.check_workdir(WORKDIR.value)
    if PROCESSES.value:
        jax.distributed.initialize()
    try:
        train.pretrain(config, workdir, stop_after=STOP_AFTER.value)
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return UNHEALTHY
    print(f"done: {workdir}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    # allocator and log settings have to stand before JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
