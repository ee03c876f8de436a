"""Breaks runs on purpose and counts what survives: mcl-jax torture --kills 50

Small runs on this machine's CPU, in a scratch folder: kill -9 at random moments, SIGTERM in every
phase, damaged checkpoints, other numbers of devices, broken images, a decoding worker killed,
wrong flags. Ends with exit code 1 at the first thing that does not survive, and says which.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax.report.progress import Bar

KILLS = flags.DEFINE_integer("kills", 50, "kill -9 so often", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 1000, "broken and odd image files, of twelve kinds")
SEED = flags.DEFINE_integer("seed", 0, "of the moments and the images")
SCRATCH = flags.DEFINE_string(
    "scratch", None, "folder to work in, which is kept; default: a temporary one"
)


def main(_: Sequence[str]) -> int:
    from mcl_jax.faults import data, folders, runs, torture

    with tempfile.TemporaryDirectory() as temporary:
        parent = Path(SCRATCH.value or temporary).absolute()
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(
            tempfile.mkdtemp(dir=parent)
        )  # a new one: logs are read from their beginning
        job = runs.Job(scratch)
        try:
            kills = torture.kills(job, KILLS.value, SEED.value)
            counts = runs.tally(Bar(kills, "kill -9", KILLS.value, unit="kill"))
            _say("kill -9 and resume", [f"{n} while {phase}" for phase, n in counts.items()])
            ended = [f"{x}: {y}" for x, y in torture.terminations(job, runs.PHASES)]
            _say("SIGTERM, then resume", ended)
            _say("damaged checkpoint", [f"{x}: {y}" for x, y in torture.damages(job)])
            changes = torture.device_changes(job, (8, 4, 2, 8), data.LOSS_TOLERANCE)
            lines = [f"{n} devices: losses within {worst:.1e}" for n, worst in changes]
            _say("other numbers of devices", lines)
            _say("second owner", [*folders.second_owner(job)])
            _say("disk full for everything", [*folders.disk_full(job)])
            _say("data folder gone", [*folders.data_gone(job)])
            _say("data changed", [*folders.data_changed(job)])
            _say("images", data.images(scratch / "images", IMAGES.value, SEED.value))
            _say("decoding worker killed", data.worker_killed(SEED.value))
            _say("mistakes", data.mistakes(job))
        except runs.Broken as error:
            print(f"NOT SURVIVED: {error}", file=sys.stderr)
            return 1
    return 0


def _say(title: str, outcomes: Sequence[str]) -> None:
    print(f"{title}: survived\n  " + "\n  ".join(outcomes), flush=True)
