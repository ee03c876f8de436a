"""Configuration files: `configs/NAME.py` or `configs/mcl.py:ARGUMENT`, and mistakes in them."""

import os
import traceback
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from ml_collections import ConfigDict

from mcl_jax.errors import UserError
from mcl_jax.settings import door


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


def read(name: str) -> ConfigDict:
    """`load` without looking at the values."""
    path, colon, argument = str(name).partition(":")
    if not os.path.isfile(path):
        raise _no_file(path)
    loader = SourceFileLoader("given_config", path)  # of any suffix, as the flag --config
    module = module_from_spec(spec_from_loader(loader.name, loader))
    try:
        loader.exec_module(module)
        config = module.get_config(*([argument] if colon else []))
    except Exception as error:  # a file may raise anything
        raise mistake(error, name) from error
    demand_loaded(config, name)
    return config


def demand_loaded(config: Any, name: str) -> None:
    """UserError unless a file gave a ConfigDict.

    ml_collections does not say that a file cannot be opened before the config is first used.
    """
    path = _path(name)
    try:
        if hasattr(config, "to_dict"):
            return
    except OSError as error:
        raise (mistake(error, name) if os.path.isfile(path) else _no_file(path)) from error
    raise UserError(
        f"--config {path}: get_config() returned a {type(config).__name__}; it must return a "
        "ConfigDict, as configs/base.py does"
    )


def _no_file(path: str) -> UserError:
    kind = "it is a folder" if os.path.isdir(path) else "there is no such file"
    return UserError(
        f"--config {path} cannot be loaded: {kind}; give a Python file with a function get_config, or "
        "the name of one that is installed: demo, folder, mcl:c4"
    )


def mistake(error: BaseException, name: str) -> UserError:
    """An exception that a file raised while it was loaded, as one line with file and line."""
    path, chain = _path(name), _chain(error)
    for raised in chain:
        if isinstance(raised, UserError) and "Traceback (most" not in str(raised):
            return raised
        if isinstance(raised, SyntaxError) and raised.filename:
            return UserError(
                f"--config {path} cannot be loaded: {raised.filename}, line {raised.lineno}: "
                f"{raised.msg}"
            )
    if (found := _place(chain, path)) is not None:
        raised, line = found
        reason = " ".join(str(raised).split())
        return UserError(f"--config {path}, line {line}: {type(raised).__name__}: {reason}")
    reason = " ".join(str(chain[0]).split())
    if "has no attribute 'get_config'" in reason:
        reason = "it has no function get_config()"
    elif "get_config()" in reason:
        reason += ", which is what stands behind the ':'"
    return UserError(f"--config {name} cannot be loaded: {reason}")


def _place(chain: Sequence[BaseException], path: str) -> tuple[BaseException, int] | None:
    """(the first exception that went through this file, the line in it); None: none did."""
    for raised in chain:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(raised.__traceback__)
            if os.path.realpath(frame.filename) == os.path.realpath(path)
        ]
        if lines:
            return raised, lines[-1]
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """What an exception was made from, the first one first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.insert(0, error)
        error = error.__cause__ or error.__context__
    return chain


def _path(name: str) -> str:
    return str(name).partition(":")[0]
