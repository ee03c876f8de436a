"""Benchmarks: the train step, also against plain torch; the input pipeline; the way to the first step;
the detection probe; and all of it on one accelerator."""
