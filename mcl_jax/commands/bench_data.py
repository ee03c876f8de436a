"""Images per second of decoding, canvases and the whole input pipeline, beside Pillow's eight views.

    mcl-jax bench data                                  # synthetic 500x375 photographs
    mcl-jax bench data --config demo                    # any config's own data
    mcl-jax bench data --pipelines=0,8 --pipelines=4,2 --json=bench_data.json

--pipelines=WORKERS,THREADS are the settings of the whole pipeline to try; repeat the flag.
"""

import os
import platform
from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results
from mcl_jax.errors import UserError
from mcl_jax.settings.rules import whole_number

CONFIG = cli.define_config()
PIPELINES = flags.DEFINE_multi_string(
    "pipelines", None, "WORKERS,THREADS; default: the config's, or 0 workers with 1 and all threads"
)
SECONDS = flags.DEFINE_float("seconds", 2.0, "per stage", lower_bound=0.1)
JSON = flags.DEFINE_string("json", None, "also write the rows to this file")

SYNTHETIC = {"canvas_size": 512, "batch_size": 32}  # px; images per batch


def main(_: Sequence[str]) -> None:
    from mcl_jax.bench.loader import SyntheticPhotos, as_text, benchmark, ratio
    from mcl_jax.data.sources import open_source

    cores = len(os.sched_getaffinity(0))
    config = cli.config_of(CONFIG, required=False)
    if config is None:
        name, source, data = "synthetic photographs", SyntheticPhotos(100_000), SYNTHETIC
        pipelines = [(0, 1), (0, cores)]
    else:
        data = config.data
        name = f"{data.dataset} {data.split}"
        source = open_source(data.dataset, data.split, data.data_dir or None)
        pipelines = [(data.workers, data.threads)]
    rows = benchmark(
        source,
        canvas_size=data["canvas_size"],
        batch_size=data["batch_size"],
        seconds=SECONDS.value,
        pipelines=[_pair(text) for text in PIPELINES.value] if PIPELINES.value else pipelines,
    )
    print(f"{name}, {cores} cores; single-image stages use one")
    print(as_text(rows))
    times = ratio(rows, data["canvas_size"])
    print(f"a canvas takes 1/{times:.1f} of the CPU time of eight views by Pillow")
    header = {"dataset": name, "cores": cores, "machine": platform.machine()}
    result = header | {"canvas_size": data["canvas_size"], "ratio": times, "rows": rows}
    results.write_json(JSON.value, result)


def _pair(text: str) -> tuple[int, int]:
    workers, threads = map(whole_number, text.split(",", 1) if "," in text else ("", ""))
    if workers is None or threads is None:
        raise UserError(f"--pipelines {text!r} is not WORKERS,THREADS, e.g. 0,2")
    return workers, threads
