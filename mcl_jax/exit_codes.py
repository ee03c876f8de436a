"""What the commands' exit codes mean: one table for all of them.

docs/commands.md shows it too, and a test holds the two together.
"""

DONE = 0
FAILED = 1
USER_ERROR = 2
UNHEALTHY = 3
LOST_HOST = 4
CANNOT_SAVE = 5
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again
INTERRUPTED = 130  # what shells give for Ctrl-C

MEANINGS = {
    DONE: "done",
    FAILED: "a check failed (summary: the run did not learn), or an error of ours, with a traceback",
    USER_ERROR: "a mistake in flags, configuration, data or files: one line on stderr",
    UNHEALTHY: "pre-training stopped itself: NaN, or features that collapsed",
    LOST_HOST: "another process of the job was lost; start all of them again",
    CANNOT_SAVE: "checkpoints or results cannot be written any more: make room, then start again",
    STOPPED: "stopped by SIGTERM or Ctrl-C, everything is saved: start the same command again",
    INTERRUPTED: "ended by Ctrl-C with nothing to save; what was finished before stays",
}
