"""Where a step's time goes: the longest kernels and operations of a profiler trace, by name.

A GPU's trace has the kernels of every stream, a TPU's the operations of a core, a CPU's the
operations of all its threads. Nothing but JAX is needed to read it.
"""

import contextlib
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from mcl_jax.errors import UserError
from mcl_jax.runtime import storage
from mcl_jax.runtime.optional import optional
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.rules import whole_number

LONGEST = 10
_DEVICE = re.compile(r"/device:(GPU|TPU)")
# Lines of a device's plane that hold what ran, on a GPU and on a TPU; others, and on a GPU all but
# the first kind, sum the same time up in other ways.
_BUSY_LINES = ("Stream", "XLA Ops")
_PYTHON = "$"  # in front of the names of Python's functions
# '%fusion.3 = ... metadata={op_name="jit(step)/..." ...}' in a program's text
_INSTRUCTION = re.compile(r"%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"")


class Event(NamedTuple):
    """Something that ran.

    Attributes:
      name: of the kernel, or of the operation where there are no kernels.
      operation: of the compiled program; '' where the trace does not say.
      nanoseconds: for how long.
    """

    name: str
    operation: str
    nanoseconds: float


def longest(
    step: Callable[[], Any], steps: int, program_text: str = "", count: int = LONGEST
) -> dict[str, Any]:
    """Traces steps and sums up.

    Args:
      step: does one and waits for it.
      steps: how many.
      program_text: of the compiled program; tells what in the source an operation comes from.
      count: rows of each list.

    Returns:
      {'busy_ms_per_step': time of all events (on a CPU, of all threads together), 'kernels' and
      'operations': rows {'name', 'ms_per_step', 'share' of the busy time, 'calls_per_step'}, longest
      first; operations also have 'source'}. Where events are operations, 'kernels' is empty.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of a Python function would be an event, and slower
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                step()
        events = list(read(Path(folder)))
    return summary(events, steps, source_of=sources(program_text), count=count)


def first_and_last(text: str) -> tuple[int, int]:
    """The steps of --profile.

    Raises:
      UserError: where the text names no two steps.
    """
    first, last = map(whole_number, text.split(":", 1) if ":" in text else ("", ""))
    if not (first and last and first <= last):
        raise UserError(f"--profile {text!r} is not FIRST:LAST, steps from 1 on, e.g. 20:25")
    return first, last


class Window:
    """Some steps of a run under the profiler: a trace in a folder, the longest operations on stderr.

    Args:
      steps: (first, last), both inside, counted from 1 as the logs count; None: no trace.
      folder: created, on a disk or in a bucket; tensorboard and Perfetto read what is in it.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Place):
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._begun = 0  # the step of which the trace is open; 0: none
        self._writing = contextlib.ExitStack()

    def before(self, step: int, inputs: Any) -> None:
        """Call before a step is sent off; `inputs` are what it waits for."""
        if step == self._first or (self._first < step <= self._last and not self._begun):
            jax.block_until_ready(inputs)
            self._local = self._writing.enter_context(storage.filled(self._folder))
            jax.profiler.start_trace(self._local)
            self._begun = step

    def after(self, step: int, outputs: Any, program: jax.stages.Compiled) -> None:
        """Call after a step was sent off."""
        if self._begun and step == self._last:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()
            steps, self._begun = step - self._begun + 1, 0
            events = list(read(self._local))
            self._leave()
            result = summary(events, steps, source_of=sources(program.as_text()), count=LONGEST)
            print(f"trace of {steps} steps in {self._folder}", file=sys.stderr)
            print(as_text(result), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends a trace whose last step did not come."""
        if self._begun:
            self._begun = 0
            with contextlib.suppress(RuntimeError):
                jax.profiler.stop_trace()
            self._leave()
            print(f"the run ended inside the trace in {self._folder}", file=sys.stderr)

    def _leave(self) -> None:
        with optional("the trace"):
            self._writing.close()


def read(folder: Path) -> Iterator[Event]:
    """Events of the traces below a folder."""
    for path in sorted(folder.rglob("*.xplane.pb")):
        planes = list(ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if _DEVICE.match(plane.name)]
        for plane in devices or planes:
            for line in _busy(plane.lines) if devices else plane.lines:
                for event in line.events:
                    if event.name.startswith(_PYTHON):  # most of them; their stats take seconds
                        continue
                    operation = next((str(v) for k, v in event.stats if k == "hlo_op"), "")
                    if operation or devices:
                        yield Event(event.name, operation, event.duration_ns)


def _busy(lines: Iterable[Any]) -> list[Any]:
    """The lines of a device's plane that hold what ran."""
    lines = list(lines)
    kinds = ([line for line in lines if line.name.startswith(kind)] for kind in _BUSY_LINES)
    return next((kind for kind in kinds if kind), [])


def sources(program_text: str) -> dict[str, str]:
    """Operation of a compiled program -> what it was traced from ('jit(step)/.../conv...')."""
    return {match[1]: match[2] for match in _INSTRUCTION.finditer(program_text)}


def summary(
    events: list[Event], steps: int, source_of: dict[str, str], count: int
) -> dict[str, Any]:
    """See `longest`."""
    busy = sum(event.nanoseconds for event in events)
    kernels = [(e.name, e.nanoseconds) for e in events if e.name != e.operation]
    operations = [(e.operation or e.name, e.nanoseconds) for e in events]
    rows = _rows(operations, steps, busy=busy, count=count)
    return {
        "traced_steps": steps,
        "busy_ms_per_step": busy / steps / 1e6,
        "kernels": _rows(kernels, steps, busy=busy, count=count),
        "operations": [row | {"source": source_of.get(row["name"], "")} for row in rows],
    }


def _rows(
    named: list[tuple[str, float]], steps: int, busy: float, count: int
) -> list[dict[str, Any]]:
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for name, nanoseconds in named:
        total[name] += nanoseconds
        calls[name] += 1
    order = sorted(total, key=total.__getitem__, reverse=True)[:count]
    return [
        {
            "name": name,
            "ms_per_step": total[name] / steps / 1e6,
            "share": total[name] / busy,
            "calls_per_step": calls[name] / steps,
        }
        for name in order
    ]


def as_text(result: dict[str, Any]) -> str:
    """`longest`'s result as text."""
    lines = [f"busy {result['busy_ms_per_step']:.2f} ms a step"]
    for kind in ("kernels", "operations"):
        lines += [f"{kind}:"] if result[kind] else []
        for row in result[kind]:
            source = row.get("source", "")
            lines.append(
                f"{row['share']:>7.1%} {row['ms_per_step']:>9.3f} ms {row['calls_per_step']:>6.1f}x  "
                f"{row['name'][:60]}" + (f"  <- {source[-80:]}" if source else "")
            )
    return "\n".join(lines)
