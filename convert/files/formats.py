"""Files of arrays: .pkl, .pth and .safetensors, written so that others load them, read without
executing anything in them.

Shapes: whatever the arrays have; all are C-contiguous.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


class _Unpickler(pickle.Unpickler):
    """Reads arrays and plain containers; a pickle may name any function, so all others are refused."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),  # how Python 2's protocol writes bytes
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise UserError(f"names {module}.{name}, which is neither an array nor a plain container")


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers.

    Raises:
      UserError: where it names anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path} is not read: it {error}") from error
    except Exception as error:  # pickle raises many kinds for a damaged file
        raise UserError(f"{path} is not a readable pickle: {first_line(error)}") from error


def write_pickle(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """A file that Detectron2's DetectionCheckpointer loads by suffix matching.

    `__author__` makes it read `model` (any name but 'Caffe2'); protocol 4 is read by Python 3.4+.
    """
    content = {"model": dict(arrays), "__author__": "mcl_jax", "matching_heuristics": True}
    with path.open("wb") as file:
        _Pickler(file, protocol=4).dump(content)


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Detectron2 .pkl: its `model`, or, of older files, all of it."""
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path.name} holds a {type(content).__name__}, not a dict of arrays")
    if content.get("__author__") == "Caffe2":
        raise UserError(
            f"{path.name} holds Caffe2's weights: for BGR images, with the stride in the 1x1 "
            "convolutions; no network here computes that"
        )
    arrays = content.get("model", content)
    odd = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
    if odd:
        raise UserError(f"{path.name} has no array under {', '.join(map(str, odd[:5]))}")
    return dict(arrays)


def import_torch() -> Any:
    """torch, or a UserError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise UserError('.pth files need torch: pip install "mcl_jax[torch]"') from error
    return torch


def load_torch(path: Path) -> Any:
    """torch.load with weights_only, which executes nothing; UserError where it refuses."""
    torch = import_torch()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        raise UserError(
            f"{path} cannot be read with torch.load(weights_only=True): {first_line(error)}"
        ) from error


def write_torch(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """A plain state_dict."""
    torch = import_torch()
    torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, path)


def write_torch_with_meta(path: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """{'state_dict', 'meta'}, as mmengine's runner writes it."""
    torch = import_torch()
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    torch.save({"state_dict": tensors, "meta": dict(about)}, path)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """A state_dict, bare or under 'state_dict' or 'model', without wrappers' 'module.'."""
    torch = import_torch()
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path.name} holds a {type(content).__name__}, not a state_dict")
    tensors = content.get("state_dict", content.get("model", content))
    odd = [name for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    if odd:
        raise UserError(f"{path.name} has no tensor under {', '.join(map(str, odd[:5]))}")
    return {name.removeprefix("module."): as_array(x) for name, x in tensors.items()}


def as_array(tensor: Any) -> np.ndarray:
    """A torch tensor as numpy."""
    torch = import_torch()
    # numpy has no bfloat16; the strict check refuses what is not float32, by name.
    wide = tensor.to(torch.float64) if tensor.dtype == torch.bfloat16 else tensor
    return wide.detach().numpy()


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
    library.numpy.save_file(contiguous, path, dict(about))


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays, by name in alphabetical order: the file keeps none of its own."""
    library = import_safetensors()
    try:
        return dict(sorted(library.numpy.load_file(path).items()))
    except Exception as error:  # the library has an exception type of its own
        raise UserError(f"{path} is not a readable .safetensors: {first_line(error)}") from error


def read_safetensors_about(path: Path) -> dict[str, str]:
    """What `write_safetensors` was told to say of the arrays' origin."""
    library = import_safetensors()
    with library.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


PICKLE = Format(".pkl", write_pickle, read_pickle, lambda: None)
TORCH = Format(".pth", write_torch, read_torch, import_torch)
MMENGINE = Format(".pth", write_torch_with_meta, read_torch, import_torch)
SAFETENSORS = Format(".safetensors", write_safetensors, read_safetensors, import_safetensors)


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """An exception's text, cut to a line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
