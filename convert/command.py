"""What `mcl-jax convert` does with its options."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from mcl_jax import cli, paths
from mcl_jax.configs import base, path_of
from mcl_jax.convert import checkpoints, imports, recognition
from mcl_jax.convert.arguments import BASE, OFFICIAL, parser
from mcl_jax.convert.targets import authors
from mcl_jax.errors import UserError
from mcl_jax.runtime import checkpoint, storage
from mcl_jax.settings import files

EXPORT_FLAGS = ("parts", "average", "divide_weights", "fold_norms")


def convert(options: argparse.Namespace) -> list[str]:
    """Does what was asked; returns the lines to print."""
    options.source = storage.locate(paths.expanded(options.source, "source"))
    options.out = storage.locate(paths.expanded(options.out, "--out"))
    if options.origin:
        return read(options)
    if options.config:
        raise UserError("--config belongs to --from; a checkpoint carries its own configuration")
    if options.network is not None:
        raise UserError("--network belongs to --from; a checkpoint is one run")
    request = checkpoints.ExportRequest(
        source=options.source,
        target=options.to,
        out=options.out,
        parts=options.parts,
        average=options.average,
        divide_weights=options.divide_weights,
        fold_norms=options.fold_norms,
    )
    written, changes = checkpoints.write(request)
    if options.to == OFFICIAL:
        return [*written, *changes]
    lines = [f"wrote {path}" for path in written]
    return lines + [f"note: {note}" for note in _notes(written)]


def _notes(written: Sequence[Any]) -> list[str]:
    """What the report of an export says that the user has to know."""
    (path,) = (path for path in map(storage.locate, written) if path.name == "report.json")
    return json.loads(storage.read(path))["notes"]


def read(options: argparse.Namespace) -> list[str]:
    """`--from`: writes a checkpoint; returns the lines to print."""
    if names := [flag for flag in EXPORT_FLAGS if getattr(options, flag)]:
        flags = ", ".join("--" + flag.replace("_", "-") for flag in names)
        raise UserError(f"{flags}: only with --to")
    if options.network is not None and options.origin not in recognition.KINDS:
        raise UserError(
            f"--network {options.network}: --from {options.origin} always reads all networks; "
            "leave --network out"
        )
    if not storage.renames(options.source):
        raise UserError(f"{options.source}: --from reads files of this machine; copy it here first")
    config = files.load(path_of(options.config)) if options.config else base.get_config()
    adopt = not options.config
    if options.origin == OFFICIAL:
        state, meta, notes = authors.load(options.source, config, adopt=adopt)
    else:
        state, meta, notes = imports.load(
            options.source, options.origin, config, adopt=adopt, network=options.network
        )
    folder = checkpoint.write(options.out, state, dict(meta))
    flags = f"--config {options.config or BASE} --workdir {options.out}"
    overrides = [] if options.config else authors.overrides(meta["config"], base.get_config())
    resume = " ".join(["mcl-jax pretrain", flags, *overrides])
    return [*notes, f"wrote {folder}; go on with", resume]


def main(arguments: list[str] | None = None) -> None:
    """Prints what was done; a mistake of the user's is one line on stderr and exit code 2."""
    with cli.mistakes_in_one_line():
        print("\n".join(convert(parser().parse_args(arguments))))
