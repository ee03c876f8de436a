"""What makes the first step come sooner."""

import contextlib
import gc
from collections.abc import Iterator

# Python's own (700, 10, 10) looks through everything that tracing made, again and again.
THRESHOLD = (100_000, 20, 100)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Inside, Python looks for garbage rarely: a traced program is a million objects that live on.

    Tracing the demo's step takes 4.5 s of CPU time instead of 5.7 s, and no collection at all 4.4 s.
    """
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
