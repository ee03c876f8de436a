"""Command-line conduct shared by the scripts: one-line errors, exit codes, the config flag."""

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mcl_jax import exit_codes
from mcl_jax.errors import UserError
from mcl_jax.runtime.optional import Forgiving


def define_config() -> flags.FlagHolder:
    """The `--config FILE` flag with `--config.key=value` overrides."""
    return config_flags.DEFINE_config_file("config", help_string="configs/NAME.py")


def config_of(flag: flags.FlagHolder, required: bool = True) -> ConfigDict | None:
    """The loaded --config; a missing flag (where required) or file is a user error.

    ml_collections keeps a file's failure to itself until the config is first used.
    """
    if flag.value is None:
        if required:
            fail("--config FILE is missing, e.g. --config configs/demo.py")
        return None
    try:
        return flag.value.lock()
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        fail(f"--config cannot be loaded: {reason}")


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """Of a command line, the arguments that make the config: for a command that this one starts.

    Example:
      >>> config_arguments(["--config", "demo.py", "--config.seed=1", "--workdir", "w"])
      ['--config', 'demo.py', '--config.seed=1']
    """
    found = []
    for position, argument in enumerate(arguments):
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and (name == "config" or name.startswith("config.")):
            found += [argument] if equals else arguments[position : position + 2]
    return found


def complete(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overrides: Mapping[tuple[str, str], flags.FlagHolder],
) -> dict[str, Any]:
    """A checkpoint's config for a script that evaluates it.

    Args:
      config: as the checkpoint holds it.
      defaults: configs/base.py's, for keys younger than the checkpoint.
      overrides: (section, key) -> the flag that sets it, if it was given.
    """
    completed = {name: dict(x) if isinstance(x, Mapping) else x for name, x in config.items()}
    for name, default in defaults.items():
        if isinstance(default, Mapping):
            completed[name] = dict(default) | completed.get(name, {})
        else:
            completed.setdefault(name, default)
    for (section, key), flag in overrides.items():
        if flag.value is not None:
            completed[section][key] = flag.value
    return completed


def whole_numbers(name: str, values: Sequence[str]) -> list[int]:
    """The values of a list flag as whole numbers; UserError names the flag."""
    try:
        return [int(value) for value in values if value]
    except ValueError:
        raise UserError(f"--{name} {','.join(values)} is not whole numbers, e.g. 1,2,4") from None


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs main(argv); a UserError or a wrong flag becomes one line on stderr and its exit code."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options start with --")
        logging.set_verbosity(logging.WARNING)  # orbax and grain tell their life stories at INFO
        return main(argv)

    sys.stderr = Forgiving(sys.stderr)  # a log on a full disk must not end a run
    try:
        app.run(guarded, flags_parser=_parse)
    except UserError as error:
        fail(str(error), error.exit_code)


def fail(message: str, code: int = exit_codes.USER_ERROR) -> None:
    """Prints `error: message` on one line and exits."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _unquoted(text: str) -> str:
    """The text of a KeyError is its message as a literal; here of a KeyError made from another's."""
    try:
        while text[:1] in ("'", '"') and text[-1:] == text[:1]:
            text = str(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        pass
    return text


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        # a UserError of a config file arrives inside the traceback that ml_collections quotes
        fail(str(error).rpartition(f"{UserError.__name__}: ")[2])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # config_flags raises these for an override of a key or type that the config lacks
        fail(f"{_unquoted(str(error))} (see configs/base.py for keys and types)")
    except (FileNotFoundError, ImportError, SyntaxError) as error:
        fail(f"--config cannot be loaded: {error}")
