"""Files of the authors' code: .pth (torch), .npz of the same names, or any format that is read.

Shapes: arrays in torch layout (OIHW, [out, in], [C]).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcl_jax.convert.files import content, weights
from mcl_jax.convert.files.formats import import_torch, save_torch
from mcl_jax.convert.files.refusals import few, printable
from mcl_jax.errors import UserError

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
    """Reads a file of any format in convert/files/content.py, of the authors' names.

    Raises:
      UserError: for a missing or damaged file, or contradicting copies.
    """
    tree = content.load(path)
    if not isinstance(tree, Mapping):
        raise UserError(f"{path.name} holds a {type(tree).__name__}, not a state_dict")
    nested = tree.get("state_dict")
    leaves = dict(nested if isinstance(nested, Mapping) else tree)
    step = _step(leaves.pop(STEP_KEY, None), tree, path.name)
    odd = [str(name) for name, x in leaves.items() if not weights.is_array(x)]
    if odd:
        raise UserError(f"{path.name} has no array under {few(odd)}")
    raw = {str(name): weights.as_array(x, str(name)) for name, x in leaves.items()}
    optimizer = tree.get("optimizer") if nested is not None else None
    momentum = _momentum(raw, optimizer) if isinstance(optimizer, Mapping) and optimizer else None
    return Content(_network(raw), step, momentum)


def _step(array: Any, tree: Mapping[str, Any], file: str) -> int | None:
    """Finished iterations: an array beside the others, or `iter` of mmcv's meta."""
    meta = tree.get("meta")
    name, step = STEP_KEY, array
    if step is None and isinstance(meta, Mapping):
        name, step = f"meta.{STEP_KEY}", meta.get(STEP_KEY)
    if step is None:
        return None
    number = weights.as_array(step, name) if weights.is_array(step) else step
    if isinstance(number, np.ndarray) and number.ndim == 0:
        number = number[()]
    if not isinstance(number, (int, np.integer)) or number < 0:
        raise UserError(f"{name} in {file} must be a whole number >= 0, got {printable(str(step))}")
    return int(number)


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
            f"{', '.join(map(printable, differing[:10]))}"
        )
    return arrays


def _momentum(
    raw: Mapping[str, np.ndarray], optimizer: Mapping[str, Any]
) -> dict[str, np.ndarray] | None:
    """Momentum buffers by name; torch numbers parameters in the order of the state_dict.

    The authors give every parameter, trained or not, a group of its own.
    """
    names = [_plain(name) for name in raw if not name.endswith((*BUFFERS, COUNTER))]
    names = [name for name in names if not name.startswith(ALIAS)]
    try:
        indices = [index for group in optimizer["param_groups"] for index in group["params"]]
        states = {index: optimizer["state"].get(index, {}) for index in indices}
        buffers = {index: state.get("momentum_buffer") for index, state in states.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("'optimizer' in the file is not the state_dict of an optimizer") from error
    trained = [name for name in names if not name.startswith("encoder_k.")]
    if len(indices) not in (len(names), len(trained)):
        raise UserError(
            f"the optimizer has {len(indices)} parameters, the state_dict {len(names)} "
            f"({len(trained)} trained); delete 'optimizer' from the file to start without momentum"
        )
    ordered = names if len(indices) == len(names) else trained
    momentum = {
        name: weights.as_array(buffers[index], f"the momentum of {name}")
        for name, index in zip(ordered, indices, strict=True)
        if weights.is_array(buffers[index])
    }
    return momentum or None


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
            save_torch({"state_dict": tensors | copies, "meta": {STEP_KEY: step}}, temporary)
        read_back = read(temporary)
        if read_back.step != step or not _equal(read_back.arrays, arrays):
            raise RuntimeError(f"{path.name} does not read back as written: is the disk sound?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in b)
