"""Pre-trains; the same command resumes.

    mcl-jax pretrain --config demo --workdir runs/demo
    mcl-jax pretrain --config mcl:c4,loss=b --workdir runs/c4 --config.optimizer.epochs=200

Any key of configs/base.py can be set. SIGTERM and Ctrl-C save, and end with exit code 75.
On several hosts, run it on each with --distributed; where JAX cannot find the others by itself (it
can on Cloud TPU, SLURM, Open MPI and Kubernetes), add --coordinator HOST:PORT --processes N --process I.
"""

import sys
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli, exit_codes
from mcl_jax.errors import CannotSave

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and pictures")
STOP_AFTER = flags.DEFINE_integer(
    "stop_after", None, "save and stop after this many steps of this run", lower_bound=1
)
PROFILE = flags.DEFINE_string(
    "profile", None, "FIRST:LAST steps to trace into WORKDIR/profile, e.g. 20:25"
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one process of several that form a job")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0")
PROCESSES = flags.DEFINE_integer("processes", None, "of the job", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "this one's number, from 0 on", lower_bound=0)


def main(_: Sequence[str]) -> int:
    config = cli.config_of(CONFIG)

    import jax  # seconds, which a mistake in the config need not wait for

    from mcl_jax import api, train
    from mcl_jax.report import profile
    from mcl_jax.runtime import hosts, leaving
    from mcl_jax.runtime.health import TrainingStopped
    from mcl_jax.runtime.preemption import Preempted

    workdir = train.check_workdir(WORKDIR.value)
    steps = profile.first_and_last(PROFILE.value) if PROFILE.value else None
    job = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if DISTRIBUTED.value or job != (None, None, None):
        hosts.join(*job, config.log.lost_host_s)
    try:
        api.pretrain(config, workdir, stop_after=STOP_AFTER.value, profile=steps, owner=True)
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return exit_codes.UNHEALTHY
    except Preempted:
        return exit_codes.STOPPED
    except CannotSave as error:
        if jax.process_count() > 1:
            raise
        # a clean exit would wait for a save to a bucket that is away
        leaving.leave(f"error: {error}", error.exit_code)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        hosts.leave_after(error, workdir)
    if jax.process_index() == 0:
        print(f"done: {workdir}", file=sys.stderr)
    return exit_codes.DONE
