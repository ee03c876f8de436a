"""Images per second of decoding, canvases and the whole input pipeline, beside Pillow's eight views.

  python scripts/bench_data.py                                      # synthetic 500x375 photographs
  python scripts/bench_data.py --dataset tfds:imagenet2012 --split train --data_dir DIR \\
      --canvas_size 384 --pipelines 0,8 4,2 --json bench_data.json

`--pipelines WORKERS,THREADS ...` are the settings of the whole pipeline to try.
"""

import argparse
import json
import os
import platform
import sys

from mcl_jax.data.benchmark import SyntheticPhotos, benchmark, table
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError


def _pair(text: str) -> tuple[int, int]:
    workers, threads = text.split(",")
    return int(workers), int(threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="synthetic", help="synthetic, or as in the config")
    parser.add_argument("--split", default="train")
    parser.add_argument("--data_dir")
    parser.add_argument("--canvas_size", type=int, default=512, help="in px")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="per stage")
    parser.add_argument(
        "--pipelines",
        type=_pair,
        nargs="*",
        metavar="WORKERS,THREADS",
        default=[(0, 1), (0, len(os.sched_getaffinity(0)))],
    )
    parser.add_argument("--json", help="also write the rows to this file")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    try:
        if arguments.dataset == "synthetic":
            source = SyntheticPhotos(100_000)
        else:
            source = open_source(arguments.dataset, arguments.split, arguments.data_dir)
        rows = benchmark(
            source,
            canvas_size=arguments.canvas_size,
            batch_size=arguments.batch_size,
            seconds=arguments.seconds,
            pipelines=arguments.pipelines,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    print(f"{arguments.dataset}, {cores} cores; single-image stages use one")
    print(table(rows))
    if arguments.json:
        header = {"dataset": arguments.dataset, "cores": cores, "machine": platform.machine()}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(header | {"canvas_size": arguments.canvas_size, "rows": rows}, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
