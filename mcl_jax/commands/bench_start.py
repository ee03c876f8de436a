"""Measures CPU seconds from the command to the first step, with a warm compile cache.

    mcl-jax bench start --config configs/demo.py

Starts the run twice, each time for one step: first to fill a compile cache, then measured phase by
phase (mcl_jax/bench/start.py).
"""

import sys
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results

CONFIG = cli.define_config()
SECONDS = flags.DEFINE_float(
    "seconds", 1800.0, "each of both may take", lower_bound=1.0, upper_bound=1_000_000
)
JSON = flags.DEFINE_string("json", None, "also write the result to this file")


def main(_: Sequence[str]) -> None:
    config = cli.config_of(
        CONFIG
    )  # checked here: a mistake is one line, not a failed run's last words

    from mcl_jax.bench import commands, start

    try:
        result = start.measure(cli.config_arguments(sys.argv[1:]), SECONDS.value)
        result["door_ms"] = start.door_ms(config)
    except commands.CommandFailed as error:
        cli.fail(str(error))
    print(start.as_text(result))
    results.write_json(JSON.value, result)
