"""`mcl-jax COMMAND ...`: finds the command, starts it, and ends with its exit code."""

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import mcl_jax
from mcl_jax import environment, exit_codes, whole_file
from mcl_jax.commands import registry, words
from mcl_jax.configs import path_of
from mcl_jax.errors import UserError
from mcl_jax.runtime import optional

HELP = ("-h", "--help", "-help")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line; None: this process's own.

    Who reads the output may stop at any time (`mcl-jax summary runs/* | head -1`); the command does
    its work to the end, and its exit code is its own.
    """
    with optional.reader_may_leave():
        try:
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        except OSError as error:  # of printing: what a command does is guarded by itself
            if (message := whole_file.mistake(error)) is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(exit_codes.CANNOT_SAVE)


def _dispatch(arguments: list[str]) -> NoReturn:
    """Says what was asked about the commands, or starts one."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        print(words.overview(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(exit_codes.DONE if arguments else exit_codes.USER_ERROR)
    if arguments[0] == "--version":
        print(mcl_jax.__version__)
        sys.exit(exit_codes.DONE)
    try:
        command, rest = registry.find(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.USER_ERROR)
    from mcl_jax import cli

    start(cli.guarded(command.module), f"mcl-jax {command.name}", rest)


def script(name: str) -> NoReturn:
    """A script of the repository that has become a command: the same flags."""
    main([*name.split(), *sys.argv[1:]])


def start(module: ModuleType, program: str, arguments: Sequence[str]) -> NoReturn:
    """Runs one command with its arguments."""
    from mcl_jax import cli

    # allocator and log settings have to stand before JAX is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", getattr(module, "CPP_LOG_LEVEL", "2"))
    helps = any(argument in HELP for argument in arguments)
    if not helps:
        cli.guarded(environment.prepare, compiles=getattr(module, "COMPILES", True))
    if hasattr(module, "parser"):
        sys.argv = [program, *arguments]
        options = module.parser(program).parse_args(arguments)
        cli.plain_log()
        sys.exit(cli.guarded(module.main, options))
    if helps:
        from mcl_jax.commands import flag_help

        print(flag_help.of_command(program, module))
        sys.exit(exit_codes.DONE)
    sys.argv = [program, *cli.guarded(_with_config_files, arguments)]
    cli.run(module.main)
    sys.exit(exit_codes.DONE)


def _with_config_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file in the place of a configuration's short name."""
    result = list(arguments)
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument == "--":
            break
        if name not in ("--config", "-config"):
            continue
        if equals:
            result[place] = f"{name}={path_of(value)}"
        elif place + 1 < len(arguments):
            result[place + 1] = path_of(arguments[place + 1])
    return result
