"""Pickles of arrays and plain containers, read without executing anything.

numpy's own unpickling and the fast one of Python believe what a file says of memory: a forged or
damaged file can crash the one and take all memory in the other. So neither is used.

Shapes: as in the file. Arrays of numbers are read; arrays of texts or objects are left out.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import collections
import mmap
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.convert.files.refusals import printable
from mcl_jax.errors import UserError

NUMBERS = re.compile(r"[biufc]\d{1,2}|\?")
DEEPEST = 20  # containers in each other; no file of weights comes near


class _Type:
    """What a file says of a dtype: `numpy` is it, or None where it is none of numbers."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = str(name).lstrip("<>|=")
        self.numpy = np.dtype(text) if NUMBERS.fullmatch(text) else None

    def __setstate__(self, state: tuple) -> None:
        if self.numpy is not None and state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])

    def array(self, data: Any, shape: Any, order: str) -> np.ndarray | None:
        """The array of these bytes, or None for one that is not of numbers."""
        if self.numpy is None:
            return None
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        return np.frombuffer(raw, self.numpy).reshape(shape, order=order)


class _Array:
    """An array whose bytes come behind it in the file, as `__setstate__`."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        shape, kind, fortran, data = state[-4:]
        self.array = kind.array(data, shape, "F" if fortran else "C")


def _from_buffer(data: Any, kind: _Type, shape: Any, order: str, axes: Any = None) -> Any:
    array = kind.array(data, shape, "F" if order == "F" else "C")
    return array if array is None or axes is None else array.transpose(axes)


def _scalar(kind: _Type, data: Any) -> Any:
    array = kind.array(data, (), "C")
    return None if array is None else array[()]


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise ValueError(f"bytes in the codec {codec!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


NAMES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,  # how Python 2's protocol writes bytes, and no bytes
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    NAMES[f"{_core}.multiarray", "_reconstruct"] = _Array
    NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    NAMES[f"{_core}.numeric", "_frombuffer"] = _from_buffer


def names_for_torch() -> list[tuple[Any, str]]:
    """Ours for numpy's, as torch.serialization.safe_globals takes them: a file of torch may have
    numbers of numpy beside its tensors, the best accuracy in most cases."""
    return [(ours, ".".join(name)) for name, ours in NAMES.items() if name[0].startswith("numpy")]


class _Unpickler(pickle._Unpickler):  # the one in Python: it keeps its memo in a dict
    """A pickle may name any function; it gets ours for those of numpy, and no other."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return NAMES[module, name]
        named = printable(f"{module}.{name}")
        raise UserError(f"names {named}, which is neither an array nor a plain container")

    def load_bytearray8(self) -> None:
        """As the original, but without making room before there is anything to put into it."""
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)
        if len(data) < size:
            raise EOFError("it ends within an array")
        self.append(data)

    def load_build(self) -> None:
        """Only ours take what is behind them; attributes of others (`_metadata`) are left out."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], (_Array, _Type)):
            self.stack[-1].__setstate__(state)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.BUILD[0]] = load_build


def load(path: Path) -> Any:
    """The content of a pickle.

    Raises:
      UserError: where it names anything but arrays of numpy and plain containers.
      Exception: of many kinds, where it is damaged.
    """
    # Of a mapped file no more can be read than there is.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _with_arrays(_Unpickler(mapped, encoding="latin1").load(), {}, 0)


def _with_arrays(x: Any, results: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """The same containers with arrays in them; deeper ones than any file has are left as they are.

    Args:
      x: anything.
      results: id -> (what was there, what is there now); holds both, so that no id is used again.
      depth: of x.
    """
    if isinstance(x, _Array):
        return x.array
    if id(x) in results:
        return results[id(x)][1]
    if depth > DEEPEST or not isinstance(x, (dict, list, tuple)):
        return x
    results[id(x)] = x, x
    if isinstance(x, dict):
        for key in list(x):
            x[key] = _with_arrays(x[key], results, depth + 1)
    elif isinstance(x, list):
        x[:] = [_with_arrays(value, results, depth + 1) for value in x]
    else:
        results[id(x)] = x, tuple(_with_arrays(value, results, depth + 1) for value in x)
    return results[id(x)][1]
