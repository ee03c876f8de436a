"""Configuration files: `configs/NAME.py` or `configs/mcl.py:ARGUMENT`, and mistakes in them."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

from ml_collections import ConfigDict

from mcl_jax import paths
from mcl_jax.errors import UserError
from mcl_jax.settings import door

_HINT = (
    "give a Python file with a function get_config, or the name of a configuration that is installed: "
    "demo, folder, mcl:c4"
)


def load(name: str) -> ConfigDict:
    """What a file's get_config() returns, checked at the door.

    Args:
      name: a Python file, or FILE:ARGUMENT for a get_config(argument).

    Raises:
      UserError: no such file, a mistake in it (naming file and line), or a configuration that
        cannot work.

    Example:
      >>> from mcl_jax.configs import path_of
      >>> load(path_of("mcl:c4,loss=b")).model.neck
      'c4'
    """
    config = read(name)
    door.check(config)
    return config


def read(name: str | os.PathLike) -> ConfigDict:
    """`load` without looking at the values.

    The file runs in this process. What it prints goes to stderr, for stdout is the command's; the
    current folder and the command line are afterwards as before; that it ends the program is a
    mistake in it.
    """
    file, argument = paths.split_argument(os.fspath(name))
    path = paths.existing_file(file, "--config", _HINT)
    if paths.is_bucket(path):
        raise UserError(f"--config {path} lies in a bucket; copy it to this machine first")
    loader = SourceFileLoader("given_config", path)  # of any suffix
    module = module_from_spec(spec_from_loader(loader.name, loader))
    try:
        with _contained():
            loader.exec_module(module)
            config = module.get_config(*([] if argument is None else [argument]))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may raise anything, SystemExit too
        raise mistake(error, path, argument) from error
    if not hasattr(config, "to_dict"):
        raise UserError(
            f"--config {path}: get_config() returned a {type(config).__name__}; it must return a "
            "ConfigDict, as configs/base.py does"
        )
    return config


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Inside, code of a user's may do what `read` says."""
    line, words = sys.argv, list(sys.argv)
    with contextlib.redirect_stdout(sys.stderr), contextlib.chdir(os.curdir):
        try:
            yield
        finally:
            sys.argv = line
            line[:] = words


def mistake(error: BaseException, path: str, argument: str | None) -> UserError:
    """An exception that a file raised while it was loaded, as one line with file and line."""
    raisings = chain(error)
    for raised in raisings:
        if isinstance(raised, UserError):
            return raised
        if isinstance(raised, SyntaxError) and raised.filename:
            return UserError(
                f"--config {path} cannot be loaded: {raised.filename}, line {raised.lineno}: "
                f"{raised.msg}"
            )
    if (place := _place(raisings, path)) is not None:
        raised, line = place
        reason = " ".join(str(raised).split())
        if isinstance(raised, SystemExit):
            reason = f"it ends the program ({reason}); a configuration may not"
        return UserError(f"--config {path}, line {line}: {type(raised).__name__}: {reason}")
    reason = " ".join(str(raisings[0]).split())
    if "has no attribute 'get_config'" in reason:
        reason = "it has no function get_config()"
    elif "get_config()" in reason:
        reason += ", which is what stands behind the ':'"
    name = path if argument is None else f"{path}:{argument}"
    return UserError(f"--config {name} cannot be loaded: {reason}")


def _place(raisings: Sequence[BaseException], path: str) -> tuple[BaseException, int] | None:
    """(the first exception that went through this file, the line in it); None: none did."""
    for raised in raisings:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(raised.__traceback__)
            if os.path.realpath(frame.filename) == os.path.realpath(path)
        ]
        if lines:
            return raised, lines[-1]
    return None


def chain(error: BaseException | None) -> list[BaseException]:
    """What an exception was made from, the first one first."""
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.insert(0, error)
        error = error.__cause__ or error.__context__
    return errors
