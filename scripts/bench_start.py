"""mcl-jax bench start --help"""

from mcl_jax.commands.main import script

if __name__ == "__main__":
    script("bench start")
