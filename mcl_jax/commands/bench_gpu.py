"""Measures everything on the accelerator of this machine, within a budget, one JSON file a part.

    mcl-jax bench gpu --config one_gpu --out runs/gpu --minutes=9

Parts in order of value: pretrain (start, kill, resume), parity (losses in float32 and float64 against
the CPU), speed, largest (batch), torch (the authors' computation on the same card), loader, profile,
study, change. One that no longer fits is skipped, one that fails is recorded, and the next goes on.
What each file means: docs/gpu.md.
"""

import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax import cli

CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", "runs/gpu", "folder of the JSON files")
SCRATCH = flags.DEFINE_string("scratch", None, "runs and compile cache; default: a new folder")
MINUTES = flags.DEFINE_float(
    "minutes", 9.0, "for all parts together", lower_bound=0, upper_bound=100_000
)
PARTS = flags.DEFINE_list("parts", [], "only these; default: all, change only with --change")
STEPS = flags.DEFINE_integer("steps", 20, "timed steps", lower_bound=1)
RESTART = flags.DEFINE_integer("restart_steps", 60, "of the run that is killed", lower_bound=6)
LOADER = flags.DEFINE_float("loader_s", 2.0, "per stage of the loader", lower_bound=0.1)
STUDY = flags.DEFINE_string("study", "--config=study_photos:gpu", "arguments of mcl-jax study")
CHANGE = flags.DEFINE_multi_string("change", [], "overrides and NAME=VALUE variables of one change")
ROOM = flags.DEFINE_float(
    "room_gib", 0.0, "for the largest batch; 0: all of the device", lower_bound=0
)


def main(_: Sequence[str]) -> int:
    from mcl_jax.bench import accelerator, parts
    from mcl_jax.runtime import storage

    config = cli.config_of(CONFIG)
    unknown = [name for name in PARTS.value if name not in accelerator.LEAST_S]
    if unknown:
        cli.fail(f"--parts {unknown[0]!r} is not one of {', '.join(accelerator.LEAST_S)}")
    # the parts' processes end with this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    budget = parts.Budget(60 * MINUTES.value)
    scratch = Path(SCRATCH.value or tempfile.mkdtemp(prefix="on_gpu-")).absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    request = accelerator.Request(
        config=json.loads(config.to_json()),
        config_arguments=cli.config_arguments(sys.argv[1:]),
        scratch=scratch,
        steps=STEPS.value,
        restart_steps=RESTART.value,
        loader_s=LOADER.value,
        study=STUDY.value,
        changes=CHANGE.value,
        room_gib=ROOM.value,
    )
    about = accelerator.describe_machine()
    print(f"{about}, scratch {scratch}", flush=True)
    selection = accelerator.parts(request, PARTS.value)
    records = parts.run(selection, budget, storage.locate(OUT.value), about)
    return int(any(record["status"] == parts.FAILED for record in records.values()))
