"""Checkpoints of the authors' PyTorch code into training states, and back.

Shapes: here HWIO and [in, out]; there OIHW and [out, in]. The predictor of montage level s is
head.predictor.s; FPN index i is P(i+2).
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from convert import architectures, authors_files, strict, table
from mcl_jax import optimizer, program
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.state import TrainState

FIELDS = ("params", "batch_stats", "target_params", "target_batch_stats")


def tensors(a: Architecture, levels: int) -> list[table.Tensor]:
    """The whole table: online encoder, target encoder, predictors."""
    return table.online(a) + table.target(a) + table.predictor(a, levels)


def to_names(
    state: Mapping[str, Any], a: Architecture, levels: int, subject: str
) -> dict[str, np.ndarray]:
    """State -> authors' names and layouts; raises UserError with every problem."""
    arrays = strict.flatten({field: state.get(field, {}) for field in FIELDS})
    rows = tensors(a, levels)
    strict.demand(strict.problems(arrays, {t.source: t.shape for t in rows}), subject)
    return {t.authors: table.to_torch(arrays[t.source]) for t in rows}


def from_names(
    arrays: Mapping[str, np.ndarray], a: Architecture, levels: int, subject: str
) -> dict[str, Any]:
    """Authors' names -> {'params', 'batch_stats', 'target_params', 'target_batch_stats'}."""
    rows = tensors(a, levels)
    strict.demand(strict.problems(arrays, {t.authors: t.torch_shape for t in rows}), subject)
    return strict.unflatten({t.source: table.from_torch(arrays[t.authors]) for t in rows})


def export(state: Mapping[str, Any], meta: Mapping[str, Any], out: Path) -> list[str]:
    """Writes --to mcl-official; returns what the user should know."""
    config = meta["config"]
    a, levels = architectures.from_config(config), config["montage"]["levels"]
    architectures.demand_resnet(a, "the authors' code")
    method = architectures.method(config)
    if method != "mcl" or a.neck != "fpn":
        raise UserError(
            f"mcl-official holds MCL with an FPN; this checkpoint is {method} with neck {a.neck}. "
            "--to detectron2, --to torchvision and --to timm export its backbone"
        )
    arrays = to_names(state, a, levels, "the checkpoint does not fit its own configuration")
    authors_files.write(out, arrays, int(meta["step"]))
    return [
        f"wrote {out}: {len(arrays)} arrays, iteration {int(meta['step'])}",
        "left out: the optimiser's momentum (the authors' code starts it at zero)",
    ]


def load(path: Path, config: Any, adopt: bool) -> tuple[TrainState, dict[str, Any], list[str]]:
    """Reads an authors' file as a full training state.

    Args:
      path: .pth or .npz.
      config: ConfigDict to go on with, checked against the file.
      adopt: first set the config's section `model` to the networks of the file.

    Returns:
      (state, meta for `checkpoint.write`, what the user should know).
    """
    content = authors_files.read(path)
    a, levels = architectures.infer({name: x.shape for name, x in content.arrays.items()})
    if adopt:
        config.model.update(asdict(a))
    plain = program.plain_config(config)
    ours = architectures.from_config(plain), plain["montage"]["levels"]
    different = architectures.differences(*ours, a, levels)
    if different:
        raise UserError(f"{path.name} does not fit the configuration: {'; '.join(different)}")
    subject = f"{path.name} does not hold a complete {a.backbone} of the authors' code"
    trees = from_names(content.arrays, a, levels, subject)
    notes = [f"read {path.name}: {a.backbone}, {levels} levels, {len(content.arrays)} arrays"]
    if content.step is None:
        notes.append("the file names no iteration: starting at step 0")
    step = content.step or 0
    opt_state = _optimizer_state(content, trees["params"], a, levels, plain, step, notes)
    state = TrainState(step=np.asarray(step, np.int32), opt_state=opt_state, memory={}, **trees)
    return state, {"config": plain, "origin": f"mcl-official:{path.name}"}, notes


def overrides(config: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Flags that turn the section `model` of `base` into that of `config`."""
    return [
        f"--config.model.{key}={value}"
        for key, value in config["model"].items()
        if value != base["model"][key]
    ]


def _optimizer_state(
    content: authors_files.Content,
    params: Any,
    a: Architecture,
    levels: int,
    config: Mapping[str, Any],
    step: int,
    notes: list[str],
) -> Any:
    """The configured optimiser's state at `step`, with the file's momentum where it has one."""
    settings = program.settings(optimizer.Settings, config["optimizer"])
    # The state does not depend on the schedule's values, only on there being one.
    lr = optimizer.learning_rate(settings, config["data"]["batch_size"], steps_per_epoch=1)
    state = optimizer.create(settings, params, lr).init(params)
    state = optax.tree_utils.tree_set(state, count=jnp.asarray(step, jnp.int32))
    if content.momentum is None:
        notes.append("the file has no optimiser momentum: starting from zero momentum")
        return state
    if settings.name == "adamw":
        raise UserError(f"{settings.name} cannot take over LARS momentum; use a lars or sgd config")
    rows = [t for t in tensors(a, levels) if t.source.startswith("params/")]
    expected = {t.authors: t.torch_shape for t in rows}
    strict.demand(strict.problems(content.momentum, expected), "the optimiser's momentum")
    # torch subtracts its buffer; optax adds its own, which already contains -learning rate.
    trace = {t.source: -table.from_torch(content.momentum[t.authors]) for t in rows}
    notes.append(f"imported the momentum of {len(rows)} parameters")
    return optax.tree_utils.tree_set(state, trace=strict.unflatten(trace)["params"])
