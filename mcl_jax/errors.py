"""The one exception for mistakes a user can mend; scripts print it as one line and exit 2."""


class UserError(ValueError):
    """A mistake in input, configuration or environment, told in one line.

    The message names the offending value and what would be right.
    """


class EmptySplit(UserError):
    """A split of a data set that is there, with no image in it."""
