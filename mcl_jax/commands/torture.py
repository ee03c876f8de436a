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

from mcl_jax import exit_codes

KILLS = flags.DEFINE_integer("kills", 50, "kill -9 so often", lower_bound=0)
IMAGES = flags.DEFINE_integer("images", 1000, "broken and odd image files, of twelve kinds")
SEED = flags.DEFINE_integer("seed", 0, "of the moments and the images")
SCRATCH = flags.DEFINE_string(
    "scratch", None, "folder to work in, which is kept; default: a temporary one"
)
SCENARIOS = flags.DEFINE_list("scenarios", [], "only these, e.g. mistakes,images; default: all")


def main(_: Sequence[str]) -> int:
    from mcl_jax.faults import runs, scenarios

    chosen = scenarios.choose(SCENARIOS.value)
    with tempfile.TemporaryDirectory() as temporary:
        parent = Path(SCRATCH.value or temporary).absolute()
        parent.mkdir(parents=True, exist_ok=True)
        # a new one: logs are read from their beginning
        job = runs.TortureJob(Path(tempfile.mkdtemp(dir=parent)))
        sizes = scenarios.Sizes(kills=KILLS.value, images=IMAGES.value, seed=SEED.value)
        try:
            for name in chosen:
                outcomes = scenarios.SCENARIOS[name](job, sizes)
                print(f"{name}: survived\n  " + "\n  ".join(outcomes), flush=True)
        except runs.Broken as error:
            print(f"NOT SURVIVED: {error}", file=sys.stderr)
            return exit_codes.FAILED
    return exit_codes.DONE
