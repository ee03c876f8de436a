"""Several processes as one job: joining it, and leaving it when a host is lost."""

import os
import re
from typing import NoReturn

import jax
from orbax.checkpoint import multihost

from mcl_jax import exit_codes
from mcl_jax.errors import UserError, one_line
from mcl_jax.runtime import leaving

_ADDRESS = re.compile(r"(\[[\da-fA-F:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    lost_after_s: int = 100,
) -> None:
    """Joins the job's processes; must come before anything that asks JAX for devices.

    Args:
      coordinator: HOST:PORT of process 0; None with the two others where JAX can find out (Cloud
        TPU, SLURM, Open MPI, Kubernetes).
      processes: of the job.
      process: this one's number, from 0 on.
      lost_after_s: seconds without a sign of life after which a process counts as lost.

    Raises:
      UserError: for arguments that do not describe a job, or if the others cannot be reached.
    """
    flags = [coordinator is not None, processes is not None, process is not None]
    if any(flags) and not all(flags):
        raise UserError(
            "--coordinator, --processes and --process belong together; give all or none"
        )
    if all(flags) and not 0 <= process < processes:
        raise UserError(f"--process {process} is not one of 0..{processes - 1} (--processes)")
    if coordinator is not None:
        _demand_address(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if all(flags) else None,
            heartbeat_timeout_seconds=lost_after_s,
        )
    except Exception as error:  # JAX reads variables of many schedulers, and what is in them
        raise UserError(
            f"cannot join the job: {one_line(error)}; outside Cloud TPU, SLURM, Open MPI and "
            "Kubernetes give mcl-jax pretrain --coordinator HOST:PORT --processes N --process I"
        ) from error


def _demand_address(coordinator: str) -> None:
    match = _ADDRESS.fullmatch(coordinator)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise UserError(
            f"--coordinator {coordinator!r} is not HOST:PORT with a port from 1 to 65535, e.g. "
            "10.0.0.1:1234 or [fd00::1]:1234"
        )


def meet(name: str, timeout_s: float = 1800.0) -> None:
    """Waits until every process of the job is here; at once if there is only one.

    Compile times differ, and the collectives of a CPU job give up after half a minute alone.

    Args:
      name: a new one for every meeting.
      timeout_s: then JAX's error is raised.
    """
    if jax.process_count() > 1:
        barrier = multihost.get_barrier_sync_fn()
        barrier(key=name, timeout_ms=round(1e3 * timeout_s))


def leave_after(error: Exception, workdir: os.PathLike) -> NoReturn:
    """Ends this process at once: barriers of a clean exit would wait for the lost one."""
    leave(
        f"stopped: a collective failed on process {jax.process_index()} of {jax.process_count()}, "
        f"most likely because another host was lost. Start all of them again with the same command; "
        f"the run goes on from the newest checkpoint in {workdir}. ({one_line(error, most=300)})"
    )


def leave(message: str) -> NoReturn:
    """Ends this process of a job at once, which ends the others: see `leave_after`."""
    leaving.leave(message, exit_codes.LOST_HOST)
