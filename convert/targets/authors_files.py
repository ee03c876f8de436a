"""Files of the authors' code: .pth (torch, weights_only) and .npz of the same names.

Shapes: arrays in torch layout (OIHW, [out, in], [C]).
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mcl_jax.convert.files.formats import as_array, first_line, import_torch, load_torch

from mcl_jax.errors import UserError

TORCH_SUFFIXES = (".pth", ".pt", ".tar")
STEP_KEY = "iter"
# The authors' module registers encoder_q.0 a second time under this name.
ALIAS, ALIASED = "backbone.", "encoder_q.0."
COUNTER = ".num_batches_tracked"  # torch counts forwards; nothing here depends on it
BUFFERS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
      arrays: name -> float32 array in the file's order, without wrappers, aliases and counters.
      step: finished iterations, None where the file does not say.
      momentum: name -> momentum buffer of the optimizer, None where the file has none.
    """

    arrays: dict[str, np.ndarray]
    step: int | None
    momentum: dict[str, np.ndarray] | None


def read(path: Path) -> Content:
    """Reads either form.

    Raises:
      UserError: for another suffix, a missing or damaged file, or contradicting copies.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the authors' .pth or an .npz of its names")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise UserError(f"{path.name} is neither .npz nor {', '.join(TORCH_SUFFIXES)}")


def _read_npz(path: Path) -> Content:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz: {first_line(error)}") from error
    step = arrays.pop(STEP_KEY, None)
    if step is not None and (step.ndim or step.dtype.kind not in "iu" or step < 0):
        raise UserError(f"{STEP_KEY} in {path.name} must be a whole number >= 0, got {step}")
    return Content(_network(arrays), None if step is None else int(step), None)


def _read_torch(path: Path) -> Content:
    torch = import_torch()
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path.name} holds a {type(content).__name__}, not a state_dict")
    tensors = content.get("state_dict", content)
    odd = [name for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    if odd:
        raise UserError(f"{path.name} has no tensor under {', '.join(map(str, odd[:5]))}")
    raw = {name: as_array(x) for name, x in tensors.items()}
    step = (content.get("meta") or {}).get(STEP_KEY)
    if step is not None and (not isinstance(step, int) or step < 0):
        raise UserError(f"meta.{STEP_KEY} in {path.name} must be a whole number >= 0, got {step!r}")
    optimizer = content.get("optimizer") if "state_dict" in content else None
    momentum = _momentum(raw, optimizer) if optimizer else None
    return Content(_network(raw), step, momentum)


def _plain(name: str) -> str:
    return name.removeprefix("module.")


def _network(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the wrapper's prefix, counters and the second copy of the backbone."""
    arrays = {_plain(name): x for name, x in raw.items() if not name.endswith(COUNTER)}
    copies = [name for name in arrays if name.startswith(ALIAS)]
    differing = []
    for name in copies:
        original = arrays.get(ALIASED + name.removeprefix(ALIAS))
        if original is None or not np.array_equal(arrays[name], original, equal_nan=True):
            differing.append(name)
        del arrays[name]
    if differing:
        raise UserError(
            f"{ALIAS}* must equal {ALIASED}*, but {len(differing)} differ: "
            f"{', '.join(differing[:10])}"
        )
    return arrays


def _momentum(
    raw: Mapping[str, np.ndarray], optimizer: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """Momentum buffers by name; torch numbers parameters in the order of the state_dict.

    The authors give every parameter, trained or not, a group of its own.
    """
    buffers = BUFFERS + (COUNTER,)
    names = [_plain(name) for name in raw if not name.endswith(buffers)]
    names = [name for name in names if not name.startswith(ALIAS)]
    try:
        indices = [index for group in optimizer["param_groups"] for index in group["params"]]
        states = {index: optimizer["state"].get(index, {}) for index in indices}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("'optimizer' in the file is not the state_dict of an optimizer") from error
    trained = [name for name in names if not name.startswith("encoder_k.")]
    if len(indices) not in (len(names), len(trained)):
        raise UserError(
            f"the optimizer has {len(indices)} parameters, the state_dict {len(names)} "
            f"({len(trained)} trained); delete 'optimizer' from the file to start without momentum"
        )
    ordered = names if len(indices) == len(names) else trained
    found = {
        name: as_array(states[index]["momentum_buffer"])
        for name, index in zip(ordered, indices, strict=True)
        if states[index].get("momentum_buffer") is not None
    }
    return found or None


def write(path: Path, arrays: Mapping[str, np.ndarray], step: int) -> None:
    """Writes .npz (plus the key 'iter') or .pth, complete or not at all, and reads it back.

    The .pth also has the second names of the backbone, so that the authors' module loads it with
    strict=True; they share memory with the first ones.

    Raises:
      UserError: for another suffix, or .pth without torch.
    """
    if path.suffix not in (".npz", ".pth"):
        raise UserError(f"--out {path} must end in .npz or .pth")
    torch = import_torch() if path.suffix == ".pth" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if torch is None:
            np.savez(temporary, **arrays, **{STEP_KEY: np.int64(step)})
        else:
            tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
            copies = {
                ALIAS + name.removeprefix(ALIASED): x
                for name, x in tensors.items()
                if name.startswith(ALIASED)
            }
            torch.save({"state_dict": tensors | copies, "meta": {STEP_KEY: step}}, temporary)
        read_back = read(temporary)
        if read_back.step != step or not _equal(read_back.arrays, arrays):
            raise RuntimeError(f"{path.name} does not read back as written: is the disk sound?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in b)
