"""Weights out of (and into) mcl_jax checkpoints: one name table, thin views, a strict report."""
