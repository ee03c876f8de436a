"""Saves that fail: what is said of each, and when it is time to give up."""

import sys

from mcl_jax.errors import CannotSave, one_line
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

IN_A_ROW = 3  # saves that fail before the run ends


class FailedSaves:
    """Counts them; each is told once on stderr.

    Args:
      folder: of the checkpoints.

    Attributes:
      steps: of all checkpoints that were not written.
    """

    def __init__(self, folder: Place):
        self._folder = folder
        self._in_a_row = 0
        self._waited_for: int | None = None  # the save that others were left out for
        self.steps: set[int] = set()

    def left_out(self, step: int, saving: int | None, waited_s: float) -> None:
        """That of `step`, because that of `saving` is still being written."""
        self._add(step)
        self._waited_for = saving
        print(
            f"the checkpoint of step {saving} is still being written after {waited_s:.0f} s; that of "
            f"step {step} is left out",
            file=sys.stderr,
        )

    def failed(self, step: int | None, error: Exception) -> None:
        """That of `step`; None: another part of one that is told already."""
        if step is None:
            return
        if step != self._waited_for:  # those that were left out for it count already
            self._add(step)
        print(f"the checkpoint of step {step} was not written: {one_line(error)}", file=sys.stderr)

    def succeeded(self) -> None:
        self._in_a_row = 0

    def demand_hope(self, newest: int | None) -> None:
        """Raises `CannotSave` once `IN_A_ROW` saves in a row have failed."""
        if self._in_a_row >= IN_A_ROW:
            raise CannotSave(
                f"{self._in_a_row} checkpoints in a row could not be written, see above; "
                f"{_kept(newest)}. {self._advice()}"
            )

    def demand_last(self, newest: int | None) -> None:
        """Raises `CannotSave` if the last save failed."""
        last_step = max(self.steps, default=-1)
        if last_step > (-1 if newest is None else newest):
            raise CannotSave(
                f"the checkpoint of step {last_step} was not written, see above; {_kept(newest)}. "
                f"{self._advice()}"
            )

    def _add(self, step: int) -> None:
        self.steps.add(step)
        self._in_a_row += 1

    def _advice(self) -> str:
        what = (
            "Make room" if storage.renames(self._folder) else "See that the bucket can be written"
        )
        return f"{what}, then run the same command again"


def _kept(newest: int | None) -> str:
    return "there is none" if newest is None else f"the newest is of step {newest}"
