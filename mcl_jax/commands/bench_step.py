"""Measures the train step of any config: images/s, FLOP/s, MFU; or, without running, its figures.

    mcl-jax bench step --config demo --profile=5
    mcl-jax bench step --config mcl --compile-only \\
        --config.data.batch_size=32

    mcl-jax bench step --config mcl --versus-torch --steps=5 \\
        --config.data.batch_size=32 --config.data.image_size=64 --config.data.canvas_size=64

--versus-torch times the step and the authors' computation in plain torch, on a CPU or a GPU
(mcl_jax/bench/versus.py). --profile adds the longest kernels and operations by name.
--largest-batch measures at the largest batch that fits. --compile-only compiles both pyramid modes
and prints JSON with FLOPs, bytes, peak memory and collectives of each, and their ratio full / assigned.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results

CONFIG = cli.define_config()
COMPILE_ONLY = flags.DEFINE_bool("compile-only", False, "figures of the compiled program, no run")
VERSUS_TORCH = flags.DEFINE_bool("versus-torch", False, "against the authors' way, in torch")
LARGEST = flags.DEFINE_bool("largest-batch", False, "at the largest batch that fits")
ROOM = flags.DEFINE_float("room_gib", 0, "memory for it, GiB; 0: all of the device", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 10, "timed steps after the warm-up", lower_bound=1)
PROFILE = flags.DEFINE_integer("profile", 0, "trace so many steps more", lower_bound=0)
JSON = flags.DEFINE_string("json", None, "also write the result to this file")


def main(_: Sequence[str]) -> None:
    config = cli.config_of(CONFIG)
    if VERSUS_TORCH.value:
        result = versus_torch(config)
    else:
        from mcl_jax.bench import step
        from mcl_jax.planning.topology import GIB
        from mcl_jax.report import profile

        if COMPILE_ONLY.value:
            result = step.compare_pyramids(config)
        elif LARGEST.value:
            result = step.largest(config, STEPS.value, ROOM.value * GIB)
        else:
            result = step.measure(config, STEPS.value, PROFILE.value)
        if "profile" in result:
            print(profile.as_text(result["profile"]), file=sys.stderr)
    print(json.dumps(result, indent=2))
    results.write_json(JSON.value, result)


def versus_torch(config) -> dict:
    # this process only looks which device there is; the two sides need the card's memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        from mcl_jax.bench import versus
    except ImportError as error:
        cli.fail(f"--versus-torch needs torch: pip install 'mcl_jax[torch]' ({error})")
    from mcl_jax import program
    from mcl_jax.convert.names import architectures
    from mcl_jax.convert.targets import authors
    from mcl_jax.models.backbone import check_backbone

    versus.keep_freed_memory()
    check_backbone(config.model.backbone)
    architecture = architectures.from_config(program.plain_config(config))
    architectures.demand_resnet(architecture, "the authors' code")
    names = authors.layout(architecture, config.montage.levels).named
    return versus.compare(config, {n: e.source for n, e in names.items()}, STEPS.value)
