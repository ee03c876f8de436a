"""What runs learned and where their results lie:

mcl-jax summary runs/r50        # one run: losses, kNN, files; exit code 1 if it did not learn
mcl-jax summary runs/*          # several side by side, with what their configurations differ in
"""

import argparse
import sys
from pathlib import Path

from mcl_jax import cli, exit_codes

COMPILES = False


def parser(program: str) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, nargs="+", help="of pretrain")
    return parser


def main(options: argparse.Namespace) -> int:
    from mcl_jax.report import runs

    if len(options.workdir) > 1:
        print(runs.side_by_side(options.workdir))
        return exit_codes.DONE
    text, learned = runs.learned(options.workdir[0])
    print(text)
    if not learned:
        print("the run did not learn: see curves.png", file=sys.stderr)
    return exit_codes.DONE if learned else exit_codes.FAILED
