"""A Detectron2 configuration: YAML, its bases, the options of the command line, the defaults.

It is read as yacs reads it, but every mistake is one line, and Detectron2 need not be installed.
Settings are flat here: {'MODEL.FPN.NORM': 'SyncBN', ...}, all keys that Detectron2 has.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcl_jax.convert.finetuning import ranges
from mcl_jax.errors import UserError

BASE = "_BASE_"
VERSION = 2
# Key, type and default of Detectron2, of 0.6 and of its newest state alike; one a line.
KEYS = Path(__file__).with_name("config_keys.txt")
COMPARABLE = ("list", "tuple")  # yacs makes the one out of the other


def read(
    path: Path, options: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Every setting of a run: defaults, then the YAML, then the options.

    Args:
      path: the YAML.
      options: KEY VALUE KEY VALUE ..., as they stand on the command line.
      defaults: of the installed Detectron2; None: those of config_keys.txt.

    Raises:
      UserError: the file cannot be read; a key that Detectron2 does not have, with the nearest one;
        a value of another type or out of its range; a KEY without VALUE.

    Example:
      settings = read(Path("configs/detectron2/coco_retinanet_1x.yaml"), ["SOLVER.BASE_LR", "0.02"])
    """
    settings = dict(defaults or known_defaults())
    values = leaves(read_yaml(path))
    if values.get("VERSION", VERSION) != VERSION:
        raise UserError(
            f"{path} has VERSION {values['VERSION']!r}; write it with VERSION: {VERSION}"
        )
    for key, x in values.items():
        settings[key] = _fitting(key, x, settings, f"{path}: ")
    if len(options) % 2:
        raise UserError(
            f"the options are KEY VALUE pairs, but {options[-1]} has no partner: {' '.join(options)}"
        )
    for key, text in ((options[i], options[i + 1]) for i in range(0, len(options), 2)):
        settings[key] = _fitting(key, _value(text), settings, "")
    ranges.demand(settings, dict(defaults or known_defaults()))
    return settings


def known_defaults() -> dict[str, Any]:
    """Detectron2's own settings, by config_keys.txt."""
    rows = [line.split("\t") for line in KEYS.read_text(encoding="utf-8").splitlines()]
    return {key: ast.literal_eval(default) for key, _, default in rows}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'MODEL.FPN.NORM': 'SyncBN', ...}"""
    result: dict[str, Any] = {}
    for key, x in tree.items():
        result.update(leaves(x, f"{prefix}{key}.") if isinstance(x, Mapping) else {prefix + key: x})
    return result


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML with its `_BASE_`s merged below it, nested as in the file.

    Args:
      path: the file.
      above: the files whose base it is.

    Raises:
      UserError: the file is missing, no text, no YAML of keys and values, or its own base.
    """
    if path.resolve() in above:
        raise UserError(f"{path} is its own {BASE}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML{_place(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys and values")
    bases = content.pop(BASE, [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases or []:
        base_path = path.parent / Path(str(base)).expanduser()
        merged = _merged(merged, read_yaml(base_path, (*above, path.resolve())), path)
    return _merged(merged, _parsed(content, path), path)


def _place(error: Exception) -> str:
    """Line and reason of a YAML error, in the words of the parser."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f": {' '.join(str(error).split())}" if str(error) else ""
    return f", line {mark.line + 1}: {' '.join(str(problem or '').split())}"


def _parsed(tree: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """With the values that YAML cannot write (tuples) made of their texts.

    Raises:
      UserError: for a key that is not a text.
    """
    result = {}
    for key, x in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{path} has the key {key!r}; Detectron2's keys are names")
        result[key] = _parsed(x, path) if isinstance(x, Mapping) else _value(x)
    return result


def _value(x: Any) -> Any:
    """A text as the literal that it is, or as itself: as yacs does it."""
    if not isinstance(x, str):
        return x
    try:
        return ast.literal_eval(x)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return x


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    both = dict(base)
    for key, x in changes.items():
        if isinstance(x, Mapping) and key in base:
            if not isinstance(base[key], Mapping):
                raise UserError(f"{path}: {key} is a value in the {BASE}, a section here")
            both[key] = _merged(base[key], x, path)
        else:
            both[key] = x
    return both


def _fitting(key: str, x: Any, settings: Mapping[str, Any], where: str) -> Any:
    """A value of the type that Detectron2 wants.

    Raises:
      UserError: for an unknown key, and for a value of another type.
    """
    if key not in settings:
        raise UserError(f"{where}Detectron2 has no key {key}{_hint(key, settings)}")
    before = settings[key]
    kinds = [type(before).__name__, type(x).__name__]
    if kinds[0] == kinds[1] or "NoneType" in kinds:
        return x
    if all(kind in COMPARABLE for kind in kinds):
        return type(before)(x)
    example = repr(float(x)) if kinds == ["float", "int"] else f"for example {before!r}"
    raise UserError(f"{where}{key} must be a {kinds[0]}, not {x!r} ({kinds[1]}): {example}")


def _hint(key: str, settings: Mapping[str, Any]) -> str:
    """The nearest key that there is."""
    if any(name.startswith(f"{key}.") for name in settings):
        return f": it is a section, give a key in it ({key}.…)"
    nearest = difflib.get_close_matches(key.upper(), settings, n=1, cutoff=0.6)
    if not nearest:  # a key without its section
        leaf = key.upper().rsplit(".", 1)[-1]
        nearest = [name for name in settings if name.endswith(f".{leaf}")][:1]
    return f"; did you mean {nearest[0]}?" if nearest else ""
