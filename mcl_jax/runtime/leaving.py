"""Ends this process at once, where a clean exit would wait for somebody who is gone."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

_duties: list[Callable[[], None]] = []


def before(duty: Callable[[], None]) -> None:
    """Has `duty` called by `leave`, which runs no other clean-up."""
    _duties.append(duty)


def leave(message: str, code: int) -> NoReturn:
    """Prints the message on stderr and ends the process with an exit code."""
    print(message, file=sys.stderr, flush=True)
    for duty in _duties:
        duty()
    os._exit(code)
