"""Log records that would tell a user twice what an exception tells already."""

import contextlib
import logging
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def dropped(*loggers: str, unwanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Inside, these loggers drop unwanted records; afterwards they are as they were."""

    def is_wanted(record: logging.LogRecord) -> bool:  # one of its own for every use: they nest
        return not unwanted(record)

    for name in loggers:
        logging.getLogger(name).addFilter(is_wanted)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeFilter(is_wanted)
