"""Compares methods: python scripts/compare_methods.py --config configs/study_scenes.py

Pre-trains and scores every row of the study; finished rows are kept in --results and the same
command goes on where it stopped. The table goes to --document after every row.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "runs/study", "checkpoints of the rows")
RESULTS = flags.DEFINE_string("results", "docs/study", "one JSON file per finished row and seed")
DOCUMENT = flags.DEFINE_string("document", "docs/study.md", "where the table is written")
ROWS = flags.DEFINE_list("rows", [], "only these rows; default: all")


def main(_: Sequence[str]) -> None:
    config = cli.config_of(CONFIG)
    if "study" not in config:
        cli.fail("--config has no section 'study'; use configs/study_scenes.py")

    import jax

    from mcl_jax.study import study

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    workdir, results = Path(WORKDIR.value), Path(RESULTS.value)
    results.mkdir(parents=True, exist_ok=True)
    if not jax.config.jax_compilation_cache_dir:  # rows that differ in their seed share programs
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "xla_cache"))
    order = list(config.study.rows)
    for row, seed in study.runs(config, ROWS.value):
        try:
            study.complete(config, row, seed, workdir, results)
        except study.Stopped:
            print("stopped on request; the same command goes on", file=sys.stderr)
            return
        study.write_table(Path(DOCUMENT.value), study.table(study.read(results), order))
    print(study.table(study.read(results), order), end="")


if __name__ == "__main__":
    # allocator and log settings have to stand before JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cli.run(main)
