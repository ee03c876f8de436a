"""What a key may hold, and how that is said in words. One rule a key; the table is keys.py."""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LARGEST_COUNT = 2**31 - 1  # what a 32-bit counter holds; only the seed goes further
LARGEST_NUMBER = 3.4e38  # what float32 holds
_INTERVAL = re.compile(r"([\[(]) *([^, ]+) *, *([^, ]+) *([\])])")


class Interval(NamedTuple):
    """Numbers between two ends; an open end does not belong to it."""

    low: float
    high: float
    low_open: bool
    high_open: bool

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """'[0, 1)' -> from 0 (closed) to 1 (open); an end may be inf."""
        left, low, high, right = _INTERVAL.fullmatch(text).groups()
        return cls(float(low), float(high), left == "(", right == ")")

    def holds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def words(self) -> str:
        """'above 0', 'from 0 to 1', 'at least 0 and below 1'; '' for all numbers."""
        if not (self.low_open or self.high_open or math.isinf(self.low) or math.isinf(self.high)):
            return f"from {_number(self.low)} to {_number(self.high)}"
        parts = []
        if not math.isinf(self.low):
            parts.append(f"{'above' if self.low_open else 'at least'} {_number(self.low)}")
        if not math.isinf(self.high):
            parts.append(f"{'below' if self.high_open else 'at most'} {_number(self.high)}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Rule:
    """Type, unit and range of one key.

    Attributes:
      kind: bool, int, float or str; of every entry, where the key holds several.
      changes: what another value does to a run that goes on, one of effects.py.
      interval: of numbers.
      unit: of numbers, as configs/base.py's comment names it.
      zero: what 0 means, where it is no amount.
      choices: of texts, or a function that returns them; None: any text.
      empty: whether a text may be empty.
      multiple: integers have to be multiples of it.
      length: (fewest, most) entries of a tuple; None: a single value.
      order: '', 'rising' (each above the one before), 'range' (low <= high) or 'distinct'.
    """

    kind: type
    changes: str
    interval: Interval = Interval(-math.inf, math.inf, low_open=True, high_open=True)
    unit: str = ""
    zero: str = ""
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None
    empty: bool = False
    multiple: int = 1
    length: tuple[int, int] | None = None
    order: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value is of this type and in this range; lists count as tuples."""
        if self.length is None:
            return self._allows_one(value)
        fewest, most = self.length
        return (
            isinstance(value, (tuple, list))
            and fewest <= len(value) <= most
            and all(self._allows_one(x) for x in value)
            and self._ordered(value)
        )

    def _allows_one(self, value: Any) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and self._allows_text(value)
        if isinstance(value, bool):
            return False
        if self.kind is int:
            return (
                isinstance(value, numbers.Integral)
                and self.interval.holds(value)
                and abs(value) <= max(LARGEST_COUNT, _finite(self.interval.high))
                and value % self.multiple == 0
            )
        return (
            isinstance(value, numbers.Real)
            and abs(value) <= LARGEST_NUMBER  # NaN compares as False
            and self.interval.holds(value)
        )

    def _allows_text(self, value: str) -> bool:
        if self.choices is not None:
            return value in self.listed()
        return (self.empty or bool(value.strip())) and "\0" not in value

    def _ordered(self, value: Sequence[Any]) -> bool:
        pairs = list(zip(value, value[1:], strict=False))
        if self.order == "rising":
            return all(a < b for a, b in pairs)
        if self.order == "range":
            return all(a <= b for a, b in pairs)
        return self.order != "distinct" or len(set(value)) == len(value)

    def listed(self) -> tuple[str, ...]:
        """The choices there are; () for other kinds."""
        return tuple(self.choices() if callable(self.choices) else self.choices or ())

    def words(self) -> str:
        """What is allowed, for the end of a sentence: 'must be ...'."""
        if self.length is None:
            return self._words_of_one() + (f" (0: {self.zero})" if self.zero else "")
        fewest, most = self.length
        ending = {"rising": ", each above the one before", "range": ", low <= high"}
        ending |= {"distinct": ", no two alike", "": ""}
        count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return f"a tuple of {count}, each {self._words_of_one()}{ending[self.order]}"

    def _words_of_one(self) -> str:
        if self.kind is bool:
            return "True or False"
        if self.choices is not None:
            return f"one of {', '.join(self.listed())}"
        if self.kind is str:
            return "text without NUL bytes" if self.empty else "text, not empty, without NUL bytes"
        interval = self.interval
        if self.kind is int and math.isinf(interval.high):
            interval = interval._replace(high=LARGEST_COUNT, high_open=False)
        noun = "a whole number" if self.kind is int else "a finite number"
        parts = [noun, f"of {self.unit}" if self.unit else "", interval.words()]
        parts += [f"and a multiple of {self.multiple}" if self.multiple > 1 else ""]
        return " ".join(part for part in parts if part)


def whole_number(text: str) -> int | None:
    """The number that a text of plain digits is; None for others, as '', '-1', '²' or a thousand 9s."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _finite(end: float) -> float:
    return 0 if math.isinf(end) else end


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
