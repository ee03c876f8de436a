"""Progress on stderr: a bar on a terminal, a line now and then in a log file."""

import io
import sys
from typing import Any

from tqdm import tqdm

EVERY_S = 60.0  # s between two lines
LINE = "{desc}{n_fmt}/{total_fmt}, {rate_fmt}{postfix}, {remaining} left"
ENDLESS = "{desc}{n_fmt}{unit}, {rate_fmt}{postfix}"  # where nobody knows the total


class Bar(tqdm):
    """tqdm's bar; where stderr is no terminal, whole lines and never a carriage return.

    Args:
      every_s: s between two lines.
      Others: tqdm's.
    """

    def __init__(self, *arguments: Any, every_s: float = EVERY_S, **options: Any):
        self._lines = not sys.stderr.isatty()
        if self._lines:
            options |= {"mininterval": every_s, "maxinterval": every_s, "miniters": 1}
            options |= {"delay": 1e-9}  # no line before anything is done
            options |= {"smoothing": 1}  # a line's rate is that since the line before
        super().__init__(*arguments, **options)
        if self._lines and not self.disable:
            self.bar_format = LINE if self.total else ENDLESS
            self.set_description(self.desc.removesuffix(": "), refresh=False)  # with ": " behind it

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._lines:
            return super().display(msg, pos)
        self.fp.write(f"{' '.join(str(self).split())}\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        if self._lines and not self.disable:
            if self.n > self.initial and self.n != self.last_shown():
                self.mininterval = 0.0
                self.update(0)  # the last line, whenever the one before was
            self.fp, self.leave = io.StringIO(), False  # what tqdm would write beside the lines
        super().close()

    def last_shown(self) -> int:
        """Of how many the last line told; -1 before the first."""
        return self.last_print_n if self.last_print_t > self.start_t else -1
