"""SIGTERM and Ctrl-C: save what is there and end."""

import signal
import socket
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from mcl_jax.exit_codes import STOPPED
from mcl_jax.runtime import leaving

ASKED = "asked to stop: this step is finished and saved first"


class Preempted(Exception):
    """A signal ended the work early; what was done is saved, and the same call goes on."""


class Preemption:
    """Notices a request to stop; a context manager that puts all handlers back at its end.

    In a process of its own, a run notices a signal at once, also while the main thread is inside a
    long compilation. Python runs signal handlers between bytecodes of the main thread, so a handler
    alone would wait for a compile of minutes. The C-level wake-up socket is written immediately; a
    thread reads it. While nothing new would be lost (`guard_work` not yet called) it ends the
    process there and then, with exit code STOPPED; afterwards it sets a flag that the loop polls
    between steps.

    In anybody else's process (a notebook, a larger program) nothing ends the process: the first
    Ctrl-C sets the flag, the next one is what it was before.

    Args:
      owner: whether the process belongs to this run, as a script's does.
    """

    def __init__(self, *, owner: bool):
        self._owner = owner
        self._of_a_job = jax.process_count() > 1
        self._requested = threading.Event()
        self._has_work = False
        self.stopped = False  # whether the loop was told to stop
        self._previous = {}
        self._reader, self._writer = socket.socketpair()

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread set handlers
        if self._owner:
            self._writer.setblocking(False)
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            # in a job of several processes SIGTERM belongs to JAX's preemption service
            numbers = (signal.SIGINT,) if self._of_a_job else (signal.SIGTERM, signal.SIGINT)
            for number in numbers:
                self._previous[number] = signal.signal(number, lambda *_: None)
            threading.Thread(target=self._watch, daemon=True).start()
        else:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._owner and self._previous:
            signal.set_wakeup_fd(-1)
        self._put_back()
        self._writer.close()

    def _put_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        print(f"{ASKED}; Ctrl-C again interrupts", file=sys.stderr, flush=True)
        self._requested.set()
        self._put_back()

    def _watch(self) -> None:
        while received := self._reader.recv(1):
            if received[0] not in self._previous:
                continue
            if not self._has_work:
                leaving.leave("stopped before the first new step: nothing to save", STOPPED)
            if not self._requested.is_set():
                print(ASKED, file=sys.stderr, flush=True)
            self._requested.set()

    def guard_work(self) -> None:
        """From here on there are steps to save: leave the exit to the loop."""
        self._has_work = True

    def requested_after(self, step: int) -> bool:
        """Whether to stop after this step, the same on all processes of the job.

        Signals reach processes at different steps; JAX's preemption service agrees on one.
        """
        if self._of_a_job:
            self.stopped = multihost_utils.reached_preemption_sync_point(step)
        else:
            self.stopped = self._requested.is_set()
        return self.stopped
