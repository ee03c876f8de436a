"""Command-line conduct shared by the scripts: one-line errors, exit codes, the config flag."""

import argparse
import contextlib
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from mcl_jax import environment, exit_codes, path_flags, whole_file
from mcl_jax.errors import UserError
from mcl_jax.settings import door, files
from mcl_jax.settings.keys import KEYS

_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc")
# JAX's "allocating 8 bytes", NumPy's "allocate 9.00 GiB"
_ASKED = re.compile(r"[Aa]llocat\w+ ([\d.]+ ?\w+)")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:(=)(.*))?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Wrong arguments in one line, as everywhere in the project."""

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's, which gives [] for FLAG=-- instead of a value."""
        for argument in sys.argv[1:] if args is None else args:
            if argument.startswith("-") and argument.endswith("=--"):
                self.error(f"{argument} gives no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; {self.prog} --help tells more")


class ConfigFiles(flags.ArgumentParser):
    """Loads --config as the library does; ml_collections itself cuts a path at its first colon."""

    def parse(self, argument: str) -> ConfigDict:
        return files.read(argument).lock()

    def flag_type(self) -> str:
        return "config object"


def define_config() -> flags.FlagHolder:
    """The `--config FILE` flag with `--config.key=value` overrides."""
    holder = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py")
    flags.FLAGS["config"].parser = ConfigFiles()
    return holder


def config_of(flag: flags.FlagHolder, *, required: bool = True) -> ConfigDict | None:
    """The loaded --config, checked at the door; a missing flag (where required) is a user error."""
    if not flag.present:
        if required:
            fail("--config FILE is missing, e.g. --config demo")
        return None
    door.check(flag.value)
    return flag.value


def config_arguments(arguments: Sequence[str]) -> list[str]:
    """Of a command line, the arguments that make the config: for a command that this one starts.

    Example:
      >>> config_arguments(["--config", "demo.py", "--config.seed=1", "--workdir", "w"])
      ['--config', 'demo.py', '--config.seed=1']
    """
    result = []
    for position, argument in enumerate(arguments):
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and (name == "config" or name.startswith("config.")):
            result += [argument] if equals else arguments[position : position + 2]
    return result


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

    Raises:
      UserError: for a flag's value that its key does not allow.
    """
    completed = door.completed(config, defaults)
    for (section, key), flag in overrides.items():
        if flag.value is not None:
            set_value(completed, f"{section}.{key}", flag.value)
    return completed


def whole_numbers(name: str, values: Sequence[str]) -> list[int]:
    """The values of a list flag as whole numbers; UserError names the flag."""
    try:
        return [int(value) for value in values if value]
    except ValueError:
        raise UserError(f"--{name} {','.join(values)} is not whole numbers, e.g. 1,2,4") from None


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets 'section.key' to a value that a flag gave, checked at the door."""
    door.check_value(key, value)
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs main(argv); a UserError or a wrong flag becomes one line on stderr and its exit code."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options start with --")
        plain_log()
        _demand_finite()
        path_flags.check()
        return main(argv)

    with mistakes_in_one_line():
        app.run(guarded, flags_parser=_parse)


def _demand_finite() -> None:
    """UserError for a flag that is nan or infinite: bounds of flags let nan pass."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value) and not name.startswith("config."):
            raise UserError(f"--{name} {value} is no finite number")


class PlainHandler(logging.Handler):
    """`warning: message` on stderr, as errors are told; absl begins with time, thread and file."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Without what asyncio tells of a failed save's other tasks, pages each, whenever it is late."""
        late = record.name == "asyncio" and "was never retrieved" in record.getMessage()
        return not late and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk must not end a run
            print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)


def plain_log() -> None:
    """Log messages go to stderr as plain lines, from warnings on: orbax and grain say a lot at INFO."""
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    if not any(isinstance(handler, PlainHandler) for handler in root.handlers):
        root.addHandler(PlainHandler())
    root.setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """What a user can mend, the environment and a full disk too, ends the program with one line."""
    path_flags.take_any_text()
    try:
        yield
    except UserError as error:
        fail(str(error), error.exit_code)
    except flags.Error as error:  # --flagfile is read where --config is defined
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
    except Exception as error:
        if message := whole_file.mistake(error):
            fail(message, exit_codes.CANNOT_SAVE)
        if not isinstance(error, AssertionError | RuntimeError | MemoryError | ValueError):
            raise
        if (message := memory_mistake(error) or environment.mistake(error)) is None:
            raise
        fail(message)


def memory_mistake(error: Exception) -> str | None:
    """One line about memory that is not there, be it JAX's or NumPy's; None for other errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(text):
        return None
    request = _ASKED.search(text)
    amount = f": {request[1]} were asked for at once" if request else ""
    return f"out of memory{amount}. A smaller batch or smaller images need less"


def guarded(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(*arguments, **named), with mistakes in one line."""
    with mistakes_in_one_line():
        return function(*arguments, **named)


def fail(message: str, code: int = exit_codes.USER_ERROR) -> NoReturn:
    """Prints `error: message` on one line and exits."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags parsed; whatever is wrong with them, or with the config file, in one line."""
    overrides = _overrides(argv)
    try:
        for key in overrides:
            _check_override(key)
        return flags.FLAGS(list(argv))
    except UserError as error:
        fail(str(error))
    except Exception as error:  # a config file may raise anything
        mistake = error
    fail(_mistake(mistake, argv, overrides))


def _check_override(key: str) -> None:
    door.check_name(key.partition("[")[0])
    if "[" in key and key.partition("[")[0] in KEYS:
        key = key.partition("[")[0]
        raise UserError(
            f"an entry of {key} cannot be set alone; give it whole: --config.{key}=(...)"
        )


def _mistake(error: Exception, argv: Sequence[str], overrides: Mapping[str, str]) -> str:
    """What ml_collections' or absl's exception means, in one line."""
    for raised in files.chain(error):  # absl wraps what a config file raises
        if isinstance(raised, UserError):
            return str(raised)
    text, name = str(error), _config_file(argv)
    for key, value in overrides.items():
        if any(part in text for part in (key, *(f"'{x}'" for x in key.split(".")))):
            if key in KEYS:
                return f"{key} is {value!r}; it must be {KEYS[key].words()}"
            return f"no key {key} in {name}"
    return text


def _overrides(argv: Sequence[str]) -> dict[str, str]:
    """Key -> text of every `--config.key=text`."""
    values = {}
    for argument, following in _arguments(argv) if "config" in flags.FLAGS else ():
        if match := _OVERRIDE.fullmatch(argument):
            key, equals, value = match.groups()
            values[key] = value if equals else following
    return values


def _config_file(argv: Sequence[str]) -> str:
    """What --config names on a command line, with its argument; '' without it."""
    for argument, following in _arguments(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def _arguments(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(argument, the one behind it) of what stands before a '--'."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--":
            return
        yield argument, following
