"""Weights of other libraries into a training state of step 0: to start from supervised ones, say.

Shapes: here HWIO and [in, out]; there as the layout of the library says.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mcl_jax import program
from mcl_jax.convert import recognition
from mcl_jax.convert.files import formats, strict, weights
from mcl_jax.convert.files.content import format_of
from mcl_jax.convert.files.formats import Arrays
from mcl_jax.convert.files.refusals import few, one_line
from mcl_jax.convert.names.architectures import from_config, on_one_device
from mcl_jax.convert.names.layouts import NETWORKS
from mcl_jax.errors import UserError
from mcl_jax.state import TrainState

TARGET_OF = {"params/encoder/": "target_params/", "batch_stats/encoder/": "target_batch_stats/"}


class Imported(NamedTuple):
    """What a file gives to a run.

    Attributes:
      arrays: path in the state -> array in our layout.
      config: to go on with.
      notes: what the user should know.
    """

    arrays: dict[str, np.ndarray]
    config: Any
    notes: list[str]


def load(
    path: Path, origin: str, config: Any, *, adopt: bool, network: str | None = None
) -> tuple[TrainState, dict, list[str]]:
    """Reads a file of another library as a training state that has taken no step.

    What the file holds goes into the online and the target network; the rest is initialized as
    the configuration says.

    Args:
      path: the file, of any format in convert/files/content.py.
      origin: one of recognition.KINDS, or 'safetensors'.
      config: ConfigDict to go on with, checked against the file.
      adopt: first set the sizes in the config's section `model` to those of the file.
      network: which of several networks in the file, as convert/files/weights.py calls it.

    Returns:
      (state, meta for `checkpoint.write`, what the user should know).

    Raises:
      UserError: for a file that cannot be read or does not hold a network of the configuration.
    """
    if origin == "safetensors":
        return _load_safetensors(path, config, adopt=adopt)
    arrays, config, notes = read(path, origin, config, adopt=adopt, network=network)
    state = placed(fresh(config), arrays)
    notes.append(f"{len(arrays)} arrays placed; the rest is initialized with seed {config.seed}")
    meta = {"config": program.plain_config(config), "origin": f"{origin}:{path.name}"}
    return state, meta, notes


def read(
    path: Path, origin: str, config: Any, *, adopt: bool, network: str | None = None
) -> Imported:
    """`load` without the state around it: what of a network the file holds, in our layout."""
    content = weights.read(path, origin, network)
    kind, model = recognition.KINDS[origin][content.style], content.arrays
    backbone = recognition.recognize(model, kind, path)
    a = from_config(program.plain_config(config))
    if adopt:
        config.model.update(recognition.sizes(model, kind, backbone=backbone, defaults=a))
        a = from_config(program.plain_config(config))
    elif a.backbone != backbone:
        raise UserError(
            f"{path.name} holds a {backbone}, model.backbone is {a.backbone!r} in the configuration"
        )
    parts, other = recognition.parts_of(model, kind, a)
    layout = recognition.without_stage_norms(kind.layout(a, parts), model)
    names = {name for name, e in layout.named.items() for name in (name, *e.buffers)}
    recognition.demand_no_more(content.backbone - names, a.backbone, path.name)
    subject = f"{path.name} does not hold a complete {a.backbone} ({', '.join(parts)})"
    arrays = layout.from_file({name: x for name, x in model.items() if name in names}, subject)
    notes = [f"read {path.name}: {kind.words}, {a.backbone}, {', '.join(parts)}", *content.notes]
    notes += [
        f"{part} is of another form (no norms, or other levels): not read, it starts anew"
        for part in other
    ]
    if rest := [name for name in model if name not in names]:
        notes.append(f"not read: {len(rest)} arrays ({few(rest)})")
    return Imported(arrays, config, notes)


def fresh(config: Any) -> TrainState:
    """The state that a run of this configuration starts from, as numpy."""
    return jax.tree.map(np.asarray, program.new_state(on_one_device(config)))


def placed(state: TrainState, arrays: Arrays) -> TrainState:
    """A state with these arrays, by their path, and those of the online encoder in the target too.

    Raises:
      UserError: for an array that the state does not have, or has in another shape.
    """
    flat = strict.flatten({name: getattr(state, name) for name in NETWORKS})
    placed = dict(arrays)
    for path, x in arrays.items():
        for online, target in TARGET_OF.items():
            copy = path.replace(online, target, 1)
            if path.startswith(online) and copy in flat:
                placed.setdefault(copy, x)
    expected = {path: flat[path].shape for path in placed if path in flat}
    strict.demand(strict.problems(placed, expected), "the file does not fit the configuration")
    trees = strict.unflatten(flat | placed)
    return state.replace(**{name: trees.get(name, {}) for name in NETWORKS})


def _load_safetensors(
    path: Path, config: Any, *, adopt: bool
) -> tuple[TrainState, dict, list[str]]:
    """`load` of what `--to safetensors` wrote: all networks, with the file's own configuration."""
    ours = format_of(path) == "safetensors"
    arrays = formats.load_safetensors(path) if ours else {}
    about = formats.read_safetensors_about(path) if ours else {}
    if about.get("format") != "mcl_jax":
        raise UserError(
            f"{path.name} was not written by --to safetensors (its metadata has no format mcl_jax)"
        )
    try:
        method, step, file_config = about["method"], about["step"], json.loads(about["config"])
        if adopt:
            config.update(file_config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path.name} has no usable metadata (method, step, config): {one_line(error)}; give "
            "a file as --to safetensors wrote it"
        ) from error
    state = placed(fresh(config), arrays)
    missing = set(strict.flatten({n: getattr(state, n) for n in NETWORKS})) - set(arrays)
    strict.demand([f"missing {name}" for name in sorted(missing)], path.name)
    notes = [
        f"read {path.name}: {method}, step {step}, {len(arrays)} arrays",
        "the optimizer starts anew, at step 0: the file holds networks alone",
    ]
    return (
        state,
        {"config": program.plain_config(config), "origin": f"safetensors:{path.name}"},
        notes,
    )
