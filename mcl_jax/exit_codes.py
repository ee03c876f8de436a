"""What a command's exit code says; docs/tpu.md has the table."""

DONE = 0
USER_ERROR = 2  # a mistake that the user can mend, told in one line
UNHEALTHY = 3  # NaN or collapse
LOST_HOST = 4  # another process of the job stopped answering
CANNOT_SAVE = 5  # checkpoints or results cannot be written any more
