"""Pre-trains: python scripts/pretrain.py --config configs/demo.py --workdir runs/demo

The same command resumes. Any key of configs/base.py can be set: --config.optimizer.epochs=200
On several hosts, run it on each with --distributed; where JAX cannot find the others by itself (it
can on Cloud TPU, SLURM, Open MPI and Kubernetes), add --coordinator HOST:PORT --processes N --process I.
"""

import logging
import os
import sys
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli, exit_codes

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and pictures")
STOP_AFTER = flags.DEFINE_integer(
    "stop_after", None, "save and stop after this many steps of this run", lower_bound=1
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one process of several that form a job")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
PROCESSES = flags.DEFINE_integer("processes", None, "of the job", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "this one's number, from 0 on", lower_bound=0)


def main(_: Sequence[str]) -> int:
    import jax

    from mcl_jax import train
    from mcl_jax.runtime import hosts
    from mcl_jax.runtime.health import TrainingStopped

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = cli.config_of(CONFIG)
    workdir = train.check_workdir(WORKDIR.value)
    if DISTRIBUTED.value or COORDINATOR.value:
        lost_after = config.log.lost_host_s
        hosts.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, lost_after)
    try:
        train.pretrain(config, workdir, stop_after=STOP_AFTER.value, owner=True)
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return exit_codes.UNHEALTHY
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        hosts.leave_after(error, workdir)
    if jax.process_index() == 0:
        print(f"done: {workdir}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    # allocator and log settings have to stand before JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
