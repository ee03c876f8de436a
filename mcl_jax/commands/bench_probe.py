"""Measures the detection probe against its network's own forward and backward pass: images/s.

    mcl-jax bench probe --config demo
    mcl-jax bench probe --config demo --config.probe.image_size=160 \\
        --config.probe.head_channels=64 --config.probe.level_bounds='(16.0, 32.0, 64.0)'

Random weights, images of noise; what is timed is in mcl_jax/bench/probe.py.
"""

import json
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results

CONFIG = cli.define_config()
MODES = flags.DEFINE_list("modes", ["backbone", "tuned"], "backbone | tuned")
STEPS = flags.DEFINE_integer("steps", 10, "timed batches after one warm-up batch", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "also write the result to this file")


def main(_: Sequence[str]) -> None:
    config = cli.config_of(CONFIG)

    import jax

    from mcl_jax import program, sharding
    from mcl_jax.bench import probe

    plain, mesh = program.plain_config(config), sharding.make_mesh(jax.local_devices())
    result = {
        "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
        "image_size": plain["probe"]["image_size"],
        "batch_size": plain["probe"]["batch_size"],
        "modes": [probe.compare(plain, mode, STEPS.value, mesh) for mode in MODES.value],
    }
    print(json.dumps(result, indent=2))
    results.write_json(JSON.value, result)
