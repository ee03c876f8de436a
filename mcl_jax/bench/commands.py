"""Commands with a time limit, and what they said last."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TAIL = 1500  # characters of a failed command's last words


class CommandFailed(RuntimeError):
    """A command ended with an error or had to be cut; the message ends with its last words."""


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
      code: its exit code; negative: the signal that ended it.
      output: stdout and stderr.
      cut: whether it was asked to stop because its time was up.
    """

    code: int
    output: str
    cut: bool


def run(
    command: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    grace_s: float = 0.0,
) -> Finished:
    """Runs a command for so many seconds at most.

    Args:
      command: program and arguments.
      seconds: after which it and its children are killed.
      environment: variables beside this process's.
      grace_s: it gets SIGTERM so long before that, to save what it has.
    """
    process = start(command, environment, stdout=subprocess.PIPE)
    cut = False
    try:
        try:
            output, _ = process.communicate(timeout=max(seconds - grace_s, 0.0))
        except subprocess.TimeoutExpired:
            cut = True
            process.send_signal(signal.SIGTERM if grace_s else signal.SIGKILL)
            try:
                output, _ = process.communicate(timeout=grace_s)
            except subprocess.TimeoutExpired:
                kill(process)
                output, _ = process.communicate()
    finally:
        kill(process)
    return Finished(process.returncode, output, cut)


def demand(finished: Finished) -> str:
    """What a command said, if it ended well.

    Raises:
      CommandFailed: otherwise.
    """
    if finished.cut:
        raise CommandFailed(f"time was up; it said: {finished.output[-TAIL:]}")
    if finished.code:
        raise CommandFailed(f"exit code {finished.code}: {finished.output[-TAIL:]}")
    return finished.output


def start(
    command: Sequence[str], environment: Mapping[str, str] | None, stdout: int
) -> subprocess.Popen:
    """A command whose stderr goes to its stdout, in a process group of its own."""
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | dict(environment or {}),
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )


def kill(process: subprocess.Popen) -> None:
    """Ends a command and its children, if there still are any."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    process.wait()
