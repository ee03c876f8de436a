"""Compares methods: mcl-jax study --config study_photos:cpu

Pre-trains and scores every row of the study; finished rows are kept in --results and the same
command goes on where it stopped. The tables go to --document after every row, and so does the
picture of AP against labels, beside it.

    mcl-jax study --config study_photos:cpu --figure iou --control random

draws AP gained over a control by IoU threshold from what is finished, and computes nothing;
--figure labels draws the other picture and the tables again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax import cli, exit_codes, paths

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", "runs/study", "checkpoints of the rows")
RESULTS = flags.DEFINE_string("results", "", "folder of one JSON per finished row and seed")
DOCUMENT = flags.DEFINE_string(
    "document", None, "where the tables go; default: docs/study.md if it is there, or study.md"
)
ROWS = flags.DEFINE_list("rows", [], "only these rows; default: all")
SEED = flags.DEFINE_integer("seed", None, "only this seed; default: all", lower_bound=0)
FIGURE = flags.DEFINE_enum("figure", None, ["labels", "iou"], "only draw, from finished rows")
CONTROL = flags.DEFINE_string("control", "random", "the row that --figure iou compares with")


def main(_: Sequence[str]) -> int:
    config = cli.config_of(CONFIG)
    if "study" not in config:
        cli.fail("--config has no section 'study'; use study_photos")

    from mcl_jax.runtime import storage
    from mcl_jax.runtime.compile_cache import compile_cache
    from mcl_jax.study import figures, rows, runs, table

    results = storage.locate(RESULTS.value or config.study.results)
    document = storage.locate(DOCUMENT.value or default_document())
    workdir = storage.locate(paths.output_folder(WORKDIR.value, "--workdir"))
    # before the hours of work: what the command line asks for, and what is there already
    selection = [run for run in rows.runs(config, ROWS.value) if SEED.value in (None, run[1])]
    finished = table.read(results)
    if FIGURE.value == "iou":
        path = document.with_name(f"{document.stem}_iou.png")
        names = list(config.study.rows)
        figures.gains_by_iou(
            path, finished, rows=names, name=config.study.shown, control=CONTROL.value
        )
        print(path)
        return exit_codes.DONE
    table.around(document)
    if not FIGURE.value:
        storage.make_folder(results)
        with compile_cache(workdir / "xla_cache"):  # rows that differ in their seed share programs
            for row, seed in selection:
                try:
                    runs.complete(config, row, seed, workdir=workdir, results=results, owner=True)
                except runs.StudyStopped:
                    print("stopped on request; the same command goes on", file=sys.stderr)
                    return exit_codes.STOPPED
                table.show(config, results, document)
    print(table.show(config, results, document), end="")
    return exit_codes.DONE


def default_document() -> str:
    """A checkout has the document; elsewhere the current folder gets one."""
    document = "docs/study.md"
    return document if Path(document).is_file() else "study.md"
