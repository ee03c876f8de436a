"""Files that this project wrote, read again: they may be cut, mixed up or edited since."""

import io
from collections.abc import Container, Iterable
from typing import Any

import numpy as np

from mcl_jax.data import text
from mcl_jax.errors import UserError
from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

_ADVICE = "put an intact copy back, or delete it"


def read_json(place: Place, what: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      place: of the file.
      what: it is, for messages: "a run's configuration".
      keys: that it cannot do without.

    Raises:
      UserError: no JSON, something else than an object, or one of the keys is missing.
    """
    advice = f"it should be {what}: {_ADVICE}"
    content = text.parsed(text.decoded(storage.read(place), str(place), advice), str(place), advice)
    if not isinstance(content, dict):
        raise damaged(place, what, f"it holds a {type(content).__name__}")
    _demand(keys, content, place, what)
    return content


def read_arrays(place: Place, what: str, keys: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; arguments and errors as `read_json`."""
    content = storage.read(place)
    try:
        with np.load(io.BytesIO(content)) as arrays:
            by_name = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # numpy's, zipfile's and zlib's kinds, for a damaged file
        raise damaged(place, what, f"{type(error).__name__}: {error}") from error
    _demand(keys, by_name, place, what)
    return by_name


def damaged(place: Place, what: str, why: str) -> UserError:
    """The error for a file that is not what it should be."""
    return UserError(f"{place} is not {what}: {why}; {_ADVICE}")


def _demand(keys: Iterable[str], content: Container[str], place: Place, what: str) -> None:
    if missing := [key for key in keys if key not in content]:
        raise damaged(place, what, f"it lacks {missing[0]}")
