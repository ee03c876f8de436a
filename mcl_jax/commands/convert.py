"""Weights out of (and into) checkpoints: see mcl_jax/convert."""

import argparse


def parser(program: str) -> argparse.ArgumentParser:
    from mcl_jax.convert import arguments

    return arguments.parser(program)


def main(options: argparse.Namespace) -> None:
    """Conversion needs no accelerator and takes none."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from mcl_jax.convert import __main__ as convert

    print("\n".join(convert.convert(options)))
