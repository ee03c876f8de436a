"""Benchmarks: the train step against plain torch, the input pipeline."""
