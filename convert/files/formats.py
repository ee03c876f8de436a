"""Files of arrays: .pkl, .pth, .safetensors and .npz, written so that others load them, read without
executing anything in them. Which of them a file is: convert/files/content.py.

Shapes: whatever the arrays have; those that are written are C-contiguous.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import contextlib
import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcl_jax.convert.files import plain_pickle, refusals
from mcl_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


class Format(NamedTuple):
    """A kind of file.

    Attributes:
      suffix: of its name.
      write: (path, arrays, what to say of their origin, strings alone).
      read: path -> arrays in the file's order; UserError for what is no such file.
      check: UserError unless the library that it needs is there.
    """

    suffix: str
    write: Callable[[Path, Arrays, Mapping[str, str]], None]
    read: Callable[[Path], dict[str, np.ndarray]]
    check: Callable[[], Any]


class _Pickler(pickle.Pickler):
    """Writes arrays without naming numpy's private modules.

    numpy 2 names numpy._core in its pickles, which numpy 1 does not have; an empty numpy.ndarray
    that receives its state afterwards is understood by both.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, ((0,),), obj.__reduce__()[2]
        return NotImplemented


# numpy's and torch's types of numbers that a safetensors header can name; numpy lacks the others.
SAFETENSORS_OF_NUMPY = frozenset(
    ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64", "C64")
)


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers.

    Raises:
      UserError: where it names anything else, or is damaged.
    """
    try:
        return plain_pickle.load(path)
    except UserError as error:
        advice = refusals.save_again(path, refusals.KEEP_ARRAYS)
        raise UserError(f"{path} is not read: it {error}; {advice}") from error
    except Exception as error:  # pickle raises many kinds for a damaged file
        raise UserError(
            f"{path} is not a readable pickle: {refusals.one_line(error)}; it is damaged or cut: "
            "fetch it again"
        ) from error


def write_pickle(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """A file that Detectron2's DetectionCheckpointer loads by suffix matching.

    `__author__` makes it read `model` (any name but 'Caffe2'); protocol 4 is read by Python 3.4+.
    """
    content = {"model": dict(arrays), "__author__": "mcl_jax", "matching_heuristics": True}
    with path.open("wb") as file:
        _Pickler(file, protocol=4).dump(content)


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays of what `write_pickle` wrote."""
    return dict(load_pickle(path)["model"])


def import_torch() -> Any:
    """torch, or a UserError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise UserError('.pth files need torch: pip install "mcl_jax[torch]"') from error
    return torch


def _numbers_of_numpy(torch: Any) -> contextlib.AbstractContextManager:
    """Within it torch reads numpy's numbers with our functions; before torch 2.7 it refuses them."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 7):
        return contextlib.nullcontext()
    return torch.serialization.safe_globals(plain_pickle.names_for_torch())


def load_torch(path: Path) -> Any:
    """The content of a file of torch.save, old ones included; weights_only executes nothing.

    Raises:
      UserError: where torch is missing, or refuses the file.
    """
    torch = import_torch()
    try:
        with warnings.catch_warnings(), _numbers_of_numpy(torch):
            warnings.simplefilter("ignore")  # of torch, about its own older formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        refused = f"{path} cannot be read with torch.load(weights_only=True): "
        if names := refusals.refused_names(error):
            advice = refusals.save_again(path, refusals.KEEP_TENSORS)
            refused += f"beside tensors it holds {', '.join(names)}; {advice}"
        else:
            refused += f"{refusals.one_line(error)}; it may be damaged or cut: fetch it again"
        raise UserError(refused) from error


def write_torch(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """A plain state_dict."""
    torch = import_torch()
    save_torch({name: torch.from_numpy(x) for name, x in arrays.items()}, path)


def save_torch(content: Any, path: Path) -> None:
    """torch.save with OSError for a disk that takes no more; torch has its own words for it."""
    import_torch().save(content, buffer := io.BytesIO())
    path.write_bytes(buffer.getbuffer())


def write_torch_with_meta(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """{'state_dict', 'meta'}, as mmengine's runner writes it."""
    torch = import_torch()
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    save_torch({"state_dict": tensors, "meta": dict(about)}, path)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The arrays of what `write_torch` or `write_torch_with_meta` wrote."""
    content = load_torch(path)
    return {name: x.numpy() for name, x in content.get("state_dict", content).items()}


def import_safetensors() -> Any:
    """The library, or UserError with the command that installs it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            '.safetensors files need safetensors: pip install "mcl_jax[safetensors]"'
        ) from error
    return safetensors


def write_safetensors(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    library = import_safetensors()
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    path.write_bytes(library.numpy.save(contiguous, dict(about)))  # as in `save_torch`


def _load_with_torch(path: Path) -> dict[str, Any]:
    """Tensors, which hold bfloat16 too."""
    import_torch()
    import safetensors.torch

    return safetensors.torch.load_file(path)


def load_safetensors(path: Path) -> dict[str, Any]:
    """The arrays (tensors, where there is bfloat16) by name, in alphabetical order.

    The file keeps no order of its own.
    """
    library = import_safetensors()
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        types = {x["dtype"] for name, x in header.items() if name != "__metadata__"}
    except Exception as error:  # json's and the system's kinds, for a damaged file
        raise UserError(_unreadable(path, ".safetensors", error)) from error
    strange = types - SAFETENSORS_OF_NUMPY
    if strange - {"BF16"}:
        raise UserError(
            f"{path} holds numbers of type {', '.join(sorted(map(str, strange)))}, which numpy "
            "lacks: save it as float32"
        )
    load_file = _load_with_torch if strange else library.numpy.load_file
    try:
        return dict(sorted(load_file(path).items()))
    except UserError:  # there is no torch
        raise
    except Exception as error:  # the library has an exception type of its own
        raise UserError(_unreadable(path, ".safetensors", error)) from error


read_safetensors = load_safetensors


def read_safetensors_about(path: Path) -> dict[str, str]:
    """What `write_safetensors` was told to say of the arrays' origin."""
    library = import_safetensors()
    with library.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name; objects, which would be pickled, are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy's, zipfile's and zlib's kinds, for a damaged file
        raise UserError(_unreadable(path, ".npz", error)) from error


def _unreadable(path: Path, kind: str, error: Exception) -> str:
    why = refusals.one_line(error)
    return f"{path} is not a readable {kind}: {why}; it may be damaged or cut: fetch it again"


PICKLE = Format(".pkl", write_pickle, read_pickle, lambda: None)
TORCH = Format(".pth", write_torch, read_torch, import_torch)
MMENGINE = Format(".pth", write_torch_with_meta, read_torch, import_torch)
SAFETENSORS = Format(".safetensors", write_safetensors, read_safetensors, import_safetensors)


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
