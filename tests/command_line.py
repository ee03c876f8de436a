"""Command lines in the tests' own process, one after the other."""

import sys

from absl import flags

from mcl_jax.commands import main


def forget() -> None:
    """A process runs one command: its flags are defined when its module is imported."""
    by_module = flags.FLAGS.flags_by_module_dict()
    for name in [m for m in by_module if m.startswith("mcl_jax.")]:
        for flag in list(by_module[name]):
            delattr(flags.FLAGS, flag.name)
        if name.startswith("mcl_jax.commands."):
            sys.modules.pop(name, None)
    for name in [n for n in flags.FLAGS if n.startswith("config.")]:
        delattr(flags.FLAGS, name)


def run(*words: object) -> int:
    """The exit code of a command line of mcl-jax."""
    before = sys.argv
    forget()
    try:
        main.main([str(word) for word in words])
    except SystemExit as end:
        return end.code or 0  # None is success
    finally:
        sys.argv = before
        forget()
        flags.FLAGS.mark_as_parsed()
