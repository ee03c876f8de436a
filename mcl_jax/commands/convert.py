"""Weights out of (and into) checkpoints: see mcl_jax/convert."""

import argparse


def parser(program: str) -> argparse.ArgumentParser:
    from mcl_jax.convert import arguments

    return arguments.parser(program)


def main(options: argparse.Namespace) -> None:
    """Conversion needs no accelerator and takes none."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from mcl_jax.convert import command

    print("\n".join(command.convert(options)))
