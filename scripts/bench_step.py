"""Measures the train step of any config: images/s, FLOP/s, MFU; or, without running, its figures.

    python scripts/bench_step.py --config configs/demo.py
    python scripts/bench_step.py --config configs/mcl.py --compile-only \\
        --config.data.batch_size=32

    python scripts/bench_step.py --config configs/mcl.py --versus-torch --steps=5 \\
        --config.data.batch_size=32 --config.data.image_size=64 --config.data.canvas_size=64

--versus-torch times the step and the authors' computation in plain torch (mcl_jax/bench/versus.py).
--compile-only compiles both pyramid modes and prints JSON with FLOPs, bytes, peak memory and
collectives of each, and their ratio full / assigned.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax import cli

CONFIG = cli.define_config()
COMPILE_ONLY = flags.DEFINE_bool("compile-only", False, "figures of the compiled program, no run")
VERSUS_TORCH = flags.DEFINE_bool("versus-torch", False, "against the authors' way, in torch")
STEPS = flags.DEFINE_integer("steps", 10, "timed steps after one warm-up step", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "also write the result to this file")


def main(_: Sequence[str]) -> None:
    config = cli.config_of(CONFIG)
    if COMPILE_ONLY.value:
        result = compare_pyramids(config)
    elif VERSUS_TORCH.value:
        result = versus_torch(config)
    else:
        result = time_steps(config)
    text = json.dumps(result, indent=2)
    print(text)
    if JSON.value:
        Path(JSON.value).write_text(text + "\n")


def compare_pyramids(given) -> dict:
    from mcl_jax import program, sharding
    from mcl_jax.planning import compiled

    result = {}
    for pyramid in ("assigned", "full"):
        config = given.copy_and_resolve_references().unlock()
        config.loss.pyramid = pyramid
        print(f"compiling pyramid={pyramid} ...", file=sys.stderr, flush=True)
        run = program.build(config, sharding.mesh_for(config), images=config.data.batch_size)
        result[pyramid] = compiled.figures(program.lower_step(run).compile())
    for name in ("flops", "bytes", "peak_bytes"):
        result[f"{name}_ratio"] = result["full"][name] / result["assigned"][name]
    return result


def versus_torch(config) -> dict:
    try:
        from mcl_jax.bench import versus
    except ImportError as error:
        cli.fail(f"--versus-torch needs torch: pip install -e '.[torch]' ({error})")
    versus.keep_freed_memory()
    return versus.compare(config, STEPS.value)


def time_steps(config) -> dict:
    import jax
    import numpy as np

    from mcl_jax import program, sharding
    from mcl_jax.planning import compiled, topology

    mesh = sharding.mesh_for(config)
    run = program.build(config, mesh, images=config.data.batch_size)
    step = program.lower_step(run).compile()
    batch = sharding.put_batch(program.random_batch(run), mesh)
    state = program.new_state(run)
    seed, seconds = program.seed_argument(run), []
    for _ in range(STEPS.value + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch, seed)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds[1:]))
    result = compiled.figures(step)
    chip, flops = topology.chip_named(jax.devices()[0]), None
    if config.optimizer.micro_batches == 1:  # XLA counts the inside of a loop once
        flops = result["flops"] / median
    return result | {
        "devices": mesh.size,
        "device_kind": jax.devices()[0].device_kind,
        "seconds_per_step": median,
        "images_per_s": config.data.batch_size / median,
        "flops_per_s_per_device": flops,
        "mfu": flops / chip.flops if chip and flops else None,
    }


if __name__ == "__main__":
    cli.run(main)
