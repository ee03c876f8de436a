"""What `import mcl_jax` offers: configurations, pre-training, frozen networks, exports.

Every function is also a command (docs/commands.md). Wrong input raises `mcl_jax.UserError`, whose
message is one line.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mcl_jax import paths
from mcl_jax.configs import path_of
from mcl_jax.errors import UserError
from mcl_jax.evaluate.frozen import FrozenNetwork
from mcl_jax.runtime import storage
from mcl_jax.settings import arguments, door, files
from mcl_jax.settings.keys import KEYS
from mcl_jax.state import TrainState

__all__ = ["FrozenNetwork", "UserError", "export", "load", "load_config", "pretrain"]

# A short name means a key of pre-training; those of evaluations are given whole, `knn.batch_size`.
EVALUATIONS = ("knn", "linear", "svm", "probe")
FORMATS = {".safetensors": "safetensors", ".pkl": "detectron2"}


def load_config(name: str | Path = "base", **values: Any) -> ConfigDict:
    """A configuration by its name, with some values changed.

    Args:
      name: of a file in mcl_jax/configs, with its argument if it takes one ('mcl:c4,loss=b'), or the
        path of a file with a function get_config.
      **values: by their key in configs/base.py; the last part is enough where only one section of
        pre-training has it. Whole keys have a dot: `**{"optimizer.epochs": 10}`.

    Returns:
      The whole configuration, checked.

    Raises:
      UserError: for a file that is not there or wrong, an unknown or ambiguous key, a wrong value.

    Example:
      >>> config = mcl_jax.load_config("mcl:c4,loss=b", batch_size=256, **{"optimizer.epochs": 10})
      >>> config.model.neck, config.loss.matching, config.data.batch_size, config.optimizer.epochs
      ('c4', 'b', 256, 10.0)
    """
    config = files.load(path_of(paths.text_of(name, "name")))
    for name_or_key, value in values.items():
        key = _whole(name_or_key)
        door.check_value(key, value)
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    door.check(config)
    return config


def _whole(name: str) -> str:
    """The key that a short name means."""
    if name in KEYS or "." in name:
        door.check_name(name)
        return name
    keys = [
        key
        for key in KEYS
        if key.rpartition(".")[2] == name and key.partition(".")[0] not in EVALUATIONS
    ]
    if len(keys) > 1:
        raise UserError(f"{name} may be {' or '.join(keys)}; give one of them whole")
    if not keys:
        door.check_name(name)
    return keys[0]


def pretrain(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    callbacks: Sequence[Callable[[int, dict[str, float]], None]] = (),
    stop_after: int | None = None,
    profile: tuple[int, int] | None = None,
    owner: bool = False,
) -> TrainState:
    """Pre-trains; the same workdir resumes. Usable in a notebook and in a larger program.

    Signal handlers and JAX's settings are as before when it returns. Ctrl-C saves and returns; the
    second one interrupts.

    Args:
      config: of `load_config`.
      workdir: receives checkpoints, metrics.jsonl, pictures, card.html, and under exports/ what
        `export.targets` names, once the last step is done.
      callbacks: called as `callback(step, values)` with every logged step's metrics. An exception in one
        ends the run; what was saved before stays.
      stop_after: steps of this call after which to save and return; None: run to the end.
      profile: (first, last) step of which a trace is written to WORKDIR/profile, counted from 1.
      owner: whether the process belongs to this run, as a command's does; see `train.pretrain`.

    Returns:
      The last state: its `step` says how far the run is.

    Raises:
      UserError: for anything wrong with configuration, data or checkpoint.
      mcl_jax.runtime.health.TrainingStopped: on NaN or collapse.

    Example:
      >>> config = mcl_jax.load_config("demo", **tiny)
      >>> losses = []
      >>> state = mcl_jax.pretrain(
      ...     config, workdir, callbacks=[lambda step, values: losses.append(values["loss"])]
      ... )
      >>> int(state.step) == len(losses)
      True
    """
    from mcl_jax import program, train

    door.check(config)
    arguments.demand(stop_after=stop_after, profile=profile, owner=owner)
    arguments.demand_callables("callbacks", callbacks)
    workdir = paths.text_of(workdir, "workdir")
    targets = door.as_dict(config)["export"]["targets"]
    if targets:
        from mcl_jax.convert import checkpoints

        for target in targets:
            checkpoints.demand_possible(target, program.plain_config(config))

    def write_exports(step: int) -> None:
        for target in targets:
            out = storage.locate(workdir) / "exports" / target
            if _exported_step(out) != step:
                export(workdir, target, out)
                print(f"exported to {out}", file=sys.stderr)

    return train.pretrain(
        config,
        workdir,
        stop_after=stop_after,
        owner=owner,
        callbacks=callbacks,
        profile=profile,
        at_end=write_exports,
    )


def _exported_step(folder: storage.Place) -> int | None:
    """Of which step an export is; None without one."""
    report = folder / "report.json"
    return json.loads(storage.read(report))["step"] if storage.is_file(report) else None


def load(path: str | Path, *, origin: str | None = None) -> FrozenNetwork:
    """A pre-trained network to compute features with.

    Args:
      path: a run's folder (its newest checkpoint), one of its checkpoints, or a file of weights: of
        `export`, or of another library.
      origin: whose names a file has: detectron2, torchvision, timm, mmdet, mcl-official or
        safetensors; None: by its ending (.pkl is detectron2's, .safetensors ours).

    Returns:
      The network with its frozen weights; `features` computes its maps.

    Raises:
      UserError: for a path without a network.

    Example:
      >>> network = mcl_jax.load(workdir)
      >>> network.names
      ('res2', 'res3', 'res4', 'res5', 'P4', 'P5')
    """
    arguments.demand(origin=origin)
    path = storage.locate(paths.expanded(path, "path"))
    if storage.is_file(path):
        return _load_file(path, origin)
    from mcl_jax import program
    from mcl_jax.configs import base
    from mcl_jax.runtime import checkpoint

    state, meta = checkpoint.read(path)
    config = door.completed(meta["config"], program.plain_config(base.get_config()))
    return FrozenNetwork(config, state, step=int(meta["step"]))


def _load_file(path: Path, origin: str | None) -> FrozenNetwork:
    from mcl_jax import program
    from mcl_jax.convert import imports, recognition
    from mcl_jax.convert.files import strict
    from mcl_jax.convert.targets import authors

    origin = origin or FORMATS.get(path.suffix)
    origins = ("mcl-official", *recognition.KINDS, "safetensors")
    if origin not in origins:
        raise UserError(
            f"{path.name}: whose names has it? give origin, one of {', '.join(origins)}"
        )
    config = load_config()
    if origin in recognition.KINDS:
        content = imports.read(path, origin, config, adopt=True)
        plain, tree = program.plain_config(content.config), strict.unflatten(content.arrays)
        return FrozenNetwork(plain, tree, step=0, levels=(0, 1, 2, 3))
    if origin == "safetensors":
        state, meta, _ = imports.load(path, origin, config, adopt=True)
    else:
        state, meta, _ = authors.load(path, config, adopt=True)
    tree = {"params": state.params, "batch_stats": state.batch_stats}
    return FrozenNetwork(meta["config"], tree, step=int(state.step))


def export(
    source: str | Path,
    target: str = "detectron2",
    out: str | Path = "exported",
    *,
    parts: str | None = None,
    average: int | None = None,
    divide_weights: float | None = None,
    fold_norms: bool = False,
) -> list[Path]:
    """Writes a run's weights in another library's form, with configuration, report and card.

    The file is read back, compared with the checkpoint, and run on a fixed image before anything
    appears in `out` (docs/convert.md).

    Args:
      source: a run's folder, or one of its checkpoints.
      target: detectron2, torchvision, timm, mmdet or safetensors.
      out: folder.
      parts: 'backbone', 'fpn', 'head', several with commas, or 'all'; None: what the target takes.
      average: of how many of the newest checkpoints the mean is exported; None: the newest alone.
      divide_weights: see paper Table 10d.
      fold_norms: let FPN and head absorb their norms.

    Returns:
      The written files.

    Raises:
      UserError: for a network that the target does not have, or a check that failed.

    Example:
      >>> written = mcl_jax.export(workdir, "safetensors", out)
      >>> sorted(path.suffix for path in written)
      ['.html', '.json', '.safetensors', '.txt']
    """
    from mcl_jax.convert import checkpoints

    arguments.demand(target=target, parts=parts, average=average, fold_norms=fold_norms)
    arguments.demand(divide_weights=divide_weights)
    request = checkpoints.ExportRequest(
        source=storage.locate(paths.expanded(source, "source")),
        target=target,
        out=storage.locate(paths.expanded(out, "out")),
        parts=parts,
        average=average,
        divide_weights=divide_weights,
        fold_norms=fold_norms,
    )
    return [storage.locate(path) for path in checkpoints.write(request)[0]]
