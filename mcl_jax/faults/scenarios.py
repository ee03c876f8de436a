"""What `mcl-jax torture` breaks: every scenario by its name, in the order in which they run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mcl_jax.errors import UserError
from mcl_jax.faults import data, folders, runs, torture
from mcl_jax.faults.runs import TortureJob
from mcl_jax.report.progress import Bar


class Sizes(NamedTuple):
    """How much of it.

    Attributes:
      kills: kill -9 so often.
      images: broken and odd files.
      seed: of the moments and the images.
    """

    kills: int
    images: int
    seed: int


def _kills(job: TortureJob, sizes: Sizes) -> list[str]:
    kills = torture.kills(job, sizes.kills, sizes.seed)
    counts = runs.tally(Bar(kills, "kill -9", sizes.kills, unit="kill"))
    return [f"{count} while {phase}" for phase, count in counts.items()]


def _terminations(job: TortureJob, sizes: Sizes) -> list[str]:
    return [f"{phase}: {end}" for phase, end in torture.terminations(job, runs.PHASES)]


def _damages(job: TortureJob, sizes: Sizes) -> list[str]:
    return [f"{kind}: {end}" for kind, end in torture.damages(job)]


def _device_changes(job: TortureJob, sizes: Sizes) -> list[str]:
    changes = torture.device_changes(job, (8, 4, 2, 8), data.LOSS_TOLERANCE)
    return [f"{count} devices: losses within {worst:.1e}" for count, worst in changes]


Scenario = Callable[[TortureJob, Sizes], Sequence[str]]  # -> lines about what survived
SCENARIOS: dict[str, Scenario] = {
    "kills": _kills,
    "sigterm": _terminations,
    "damaged-checkpoint": _damages,
    "devices": _device_changes,
    "second-owner": lambda job, sizes: [*folders.second_owner(job)],
    "disk-full": lambda job, sizes: [*folders.disk_full(job)],
    "data-gone": lambda job, sizes: [*folders.data_gone(job)],
    "data-changed": lambda job, sizes: [*folders.data_changed(job)],
    "images": lambda job, sizes: data.images(job.scratch / "images", sizes.images, sizes.seed),
    "worker-killed": lambda job, sizes: data.worker_killed(sizes.seed),
    "mistakes": lambda job, sizes: data.mistakes(job),
}


def choose(names: Sequence[str]) -> list[str]:
    """Scenarios in their order; all if no names are given.

    Raises:
      UserError: for a name that is none of them.
    """
    for name in names:
        if name not in SCENARIOS:
            raise UserError(f"--scenarios {name!r} is not one of {', '.join(SCENARIOS)}")
    return [name for name in SCENARIOS if name in names or not names]
