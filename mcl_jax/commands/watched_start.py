"""`mcl-jax pretrain` with clocks: the process that `mcl-jax bench start` starts."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcl_jax.bench.start import Watch


def run(out: str, arguments: Sequence[str]) -> None:
    """`mcl-jax pretrain` with clocks; writes `Watch.rows` to a file."""
    watch = Watch()

    from mcl_jax import api, program, train  # noqa: F401
    from mcl_jax.commands import main
    from mcl_jax.report.metrics import MetricWriter
    from mcl_jax.runtime.preemption import Preemption

    watch.mark()

    def always(*_: Any) -> bool:
        return True

    ends = [
        (train, "KnnMonitor", always),
        (train, "_restored", always),
        (program, "lower_step", always),
        (train, "_compiled", always),
        (Preemption, "guard_work", always),
        (MetricWriter, "write", lambda writer, step, values: step == 1),
    ]
    for number, end in enumerate(ends, start=1):
        watch.after(number, *end)
    try:
        main.main(["pretrain", *arguments])
    finally:
        Path(out).write_text(json.dumps(watch.rows))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as the command does, before JAX is there
    run(sys.argv[1], sys.argv[2:])
