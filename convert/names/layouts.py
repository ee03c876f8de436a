"""Views: what of a checkpoint one file holds, under which names and in which layout.

Shapes: a *source* is a path in the state, as in convert/names/table.py; arrays of the state are in our
layouts, those of a file in the file's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mcl_jax.convert.files import strict
from mcl_jax.convert.names import swin, table
from mcl_jax.errors import UserError

NETWORKS = ("params", "batch_stats", "target_params", "target_batch_stats")
COMPUTED = "computed"  # the source of buffers that hold nothing learned

# How arrays of a file lie in memory: name -> (from ours, to ours), exact inverses of each other.
LAYOUTS = {
    "torch": (table.to_torch, table.from_torch),
    "same": (np.array, np.array),
    "ours": (np.asarray, np.asarray),  # kernels too; not copied
    "unfold": (swin.to_unfold, swin.from_unfold),
}


@dataclass(frozen=True)
class Entry:
    """One array.

    Attributes:
      source: path in the state.
      shape: in our layout.
      name: in the file; '' for an array that must be in the checkpoint and has no place there.
      layout: one of LAYOUTS.
      buffers: what the file's library computes for itself and stores right behind: name -> array.
    """

    source: str
    shape: table.Shape
    name: str
    layout: str = "torch"
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def file_shape(self) -> table.Shape:
        if self.layout in ("same", "ours"):
            return self.shape
        return tuple(self.shape[axis] for axis in table.TO_TORCH[len(self.shape)])

    def to_file(self, array: np.ndarray) -> np.ndarray:
        return LAYOUTS[self.layout][0](array)

    def from_file(self, array: np.ndarray) -> np.ndarray:
        return LAYOUTS[self.layout][1](array)


@dataclass(frozen=True)
class FileLayout:
    """The arrays of one file.

    Attributes:
      entries: in the file's order.
      roots: starts of paths in the state; every array below one must have an entry.
    """

    entries: tuple[Entry, ...]
    roots: tuple[str, ...]

    @property
    def named(self) -> dict[str, Entry]:
        """The file's name -> entry, without computed buffers."""
        return {entry.name: entry for entry in self.entries if entry.name}

    @property
    def sources(self) -> dict[str, str]:
        """The file's name -> path in the state, or COMPUTED; in the file's order."""
        paths = {}
        for name, entry in self.named.items():
            paths[name] = entry.source
            paths |= dict.fromkeys(entry.buffers, COMPUTED)
        return paths

    def to_file(self, state: Mapping[str, Any], subject: str) -> dict[str, np.ndarray]:
        """The file's arrays of a state, buffers included.

        Args:
          state: nested dicts of arrays with the fields of TrainState.
          subject: what an error is about.

        Raises:
          UserError: names every missing, unexpected, misshapen or non-finite array.
        """
        arrays = {path: x for path, x in networks(state).items() if path.startswith(self.roots)}
        expected = {entry.source: entry.shape for entry in self.entries}
        strict.demand(strict.problems(arrays, expected), subject)
        model = {}
        for name, entry in self.named.items():
            model[name] = entry.to_file(arrays[entry.source])
            model |= entry.buffers
        return model

    def from_file(self, model: Mapping[str, np.ndarray], subject: str) -> dict[str, np.ndarray]:
        """Path in the state -> array in our layout, of a file's arrays; buffers are passed over.

        Raises:
          UserError: as `to_file`, by the file's names.
        """
        self._demand_complete(model, subject)
        return {e.source: e.from_file(model[name]) for name, e in self.named.items()}

    def _demand_complete(self, model: Mapping[str, np.ndarray], subject: str) -> None:
        buffers = {name for entry in self.entries for name in entry.buffers}
        arrays = {name: x for name, x in model.items() if name not in buffers}
        expected = {name: entry.file_shape for name, entry in self.named.items()}
        strict.demand(strict.problems(arrays, expected), subject)

    def demand_same(self, model: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """UserError naming every array of a file that is not, back in our layout, the state's."""
        self._demand_complete(model, "the written file")
        arrays = networks(state)
        differing = [  # one at a time: together they would be the network once more in memory
            f"{name} is not {entry.source}"
            for name, entry in self.named.items()
            if not np.array_equal(entry.from_file(model[name]), arrays[entry.source])
        ]
        if differing:
            raise UserError(f"the written file is wrong: {'; '.join(differing)}")


def networks(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every array of the online and target networks: source -> array."""
    return strict.flatten({name: state[name] for name in NETWORKS if state.get(name)})


def roots(*parts: str) -> tuple[str, ...]:
    """Where these parts of the online encoder are in a state."""
    return tuple(
        f"{field}/encoder/{part}/" for field in ("params", "batch_stats") for part in parts
    )
