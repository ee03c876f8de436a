"""python -m mcl_jax is mcl-jax."""

from mcl_jax.commands.main import main

if __name__ == "__main__":
    main()
