"""The commands of `mcl-jax`: one module each, thin; what they do lives in the other rooms.

A module has either `main(argv)` and absl flags (commands with a configuration), or `parser(program)`
and `main(options)`. Importing one takes no JAX, so that help is quick.
"""
