"""Weights out of and into mcl_jax checkpoints: one name table, every file's layout, a strict report."""
