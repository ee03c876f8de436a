"""Weights out of (and into) checkpoints: see mcl_jax/convert."""

from collections.abc import Sequence


def run(program: str, arguments: Sequence[str]) -> int:
    """Conversion needs no accelerator and takes none."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from mcl_jax.convert import __main__ as convert

    print("\n".join(convert.convert(convert.parse(list(arguments), program))))
    return 0
