"""Errors that a user can mend; scripts print them as one line and exit with the error's code."""

from mcl_jax import exit_codes


class UserError(ValueError):
    """A mistake in input, configuration or environment, told in one line.

    The message names the offending value and what would be right.

    Attributes:
      exit_code: of a script that ends with it.
    """

    exit_code = exit_codes.USER_ERROR


class CannotSave(UserError):
    """What a run is for, checkpoints or results, cannot be written: the disk is full or away."""

    exit_code = exit_codes.CANNOT_SAVE


class EmptySplit(UserError):
    """A split of a data set that is there, with no image in it."""


def one_line(error: Exception, most: int = 200) -> str:
    """An error's message without line breaks, at most so many characters; its kind if it has none.

    Example:
      >>> one_line(OSError("no room\\n  left"))
      'no room left'
    """
    return " ".join(str(error).split())[:most] or type(error).__name__
