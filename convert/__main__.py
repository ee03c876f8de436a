"""Converts checkpoints: python -m convert is mcl-jax convert."""

from mcl_jax.commands.main import script

if __name__ == "__main__":
    script("convert")
