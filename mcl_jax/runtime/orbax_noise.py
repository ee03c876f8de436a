"""A save that fails is told in one line; orbax logs pages for every array of it."""

import contextlib
import logging
import sys
from collections.abc import Iterator

_LOGGERS = ("absl", "asyncio")


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Inside, errors that orbax or its event loops log are dropped: they are raised as well."""
    raised = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # an array's write ends after the loop that waited for it
        if "Event loop is closed" not in str(unraisable.exc_value):
            raised(unraisable)

    sys.unraisablehook = hook
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)
    try:
        yield
    finally:
        sys.unraisablehook = raised
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    failed = record.levelno >= logging.ERROR
    return not (failed and ("orbax" in record.pathname or "orbax" in record.getMessage()))
