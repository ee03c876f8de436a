"""Measurements in parts within a time budget: every part's result is a file as soon as it is known."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
Results = Mapping[str, Mapping[str, Any]]


class Budget:
    """Seconds that are left.

    Args:
      seconds: from now on.
      now: the clock, in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self.now, self._end = now, now() + seconds

    def left(self) -> float:
        return self._end - self.now()


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
      name: also of the file.
      least_s: with less time left it is not begun.
      measure: given the budget and the results of parts that are done, returns what JSON can hold.
    """

    name: str
    least_s: float
    measure: Callable[[Budget, Results], Mapping[str, Any]]


def run(
    parts: Sequence[Part], budget: Budget, out: Place, about: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Measures part after part; one that fails is recorded with its error and the next goes on.

    Args:
      parts: in order of value.
      budget: what all of them may take.
      out: folder; receives NAME.json of every part, written whole or not at all.
      about: what every record says, e.g. the device.

    Returns:
      name -> record: {'part', 'status', 'seconds', ...about} and 'result', or 'error', or 'reason'
      of a part that was skipped.
    """
    storage.make_folder(out)
    records: dict[str, dict[str, Any]] = {}
    for part in parts:
        started = budget.now()
        outcome = _outcome(part, budget, records)
        seconds = round(budget.now() - started, 2)
        record = {"part": part.name, "seconds": seconds, **about, **outcome}
        records[part.name] = record
        print(line(record), flush=True)
        storage.write_result(out / f"{part.name}.json", json.dumps(record, indent=1) + "\n")
    return records


def _outcome(part: Part, budget: Budget, records: Results) -> dict[str, Any]:
    seconds_left = budget.left()
    if seconds_left < part.least_s:
        reason = f"{max(seconds_left, 0):.0f} s are left, it takes at least {part.least_s:.0f} s"
        return {"status": SKIPPED, "reason": reason}
    results = {name: record["result"] for name, record in records.items() if "result" in record}
    try:
        result = dict(part.measure(budget, results))
        json.dumps(result)
    except Exception as error:  # whatever it is, the other parts are still worth their time
        return {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
    return {"status": DONE, "result": result}


def line(record: Mapping[str, Any]) -> str:
    """One record as one line of text, with the figures that stand at the top of its result."""
    numbers = {
        name: value
        for name, value in record.get("result", {}).items()
        if isinstance(value, int | float | str)
    }
    message = record.get("error") or record.get("reason") or ""
    message = " ".join(message.split())[-300:]
    figures = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    )
    return (
        f"{record['part']}: {record['status']} in {record['seconds']:.1f} s  {message or figures}"
    )
