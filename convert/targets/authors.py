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

from mcl_jax import optimizer, program
from mcl_jax.convert.checks import report, selfcheck
from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.files import folder, formats, strict
from mcl_jax.convert.names import architectures, table
from mcl_jax.convert.names.layouts import Entry, FileLayout
from mcl_jax.convert.targets import authors_files
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture
from mcl_jax.paths import shown
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState


def tensors(a: Architecture, levels: int) -> list[table.Tensor]:
    """The whole table: online encoder, target encoder, predictors."""
    return table.online(a) + table.target(a) + table.predictor(a, levels)


def layout(a: Architecture, levels: int) -> FileLayout:
    """All networks under the authors' names."""
    entries = tuple(Entry(t.source, t.shape, t.authors) for t in tensors(a, levels))
    return FileLayout(entries, ("",))


def export(snapshot: Snapshot, out: Path) -> list[str]:
    """Writes --to mcl-official, STEM.report.json and .txt; returns what the user should know.

    Checked as the exports to folders are, see `convert.export.export`.

    Args:
      snapshot: the checkpoint.
      out: file, .pth or .npz.
    """
    if out.is_dir():
        raise UserError(f"--out {shown(out)!r} is a folder; give a file, .pth or .npz")
    state, meta = snapshot.state, snapshot.meta
    config = meta["config"]
    a, levels = architectures.from_config(config), config["montage"]["levels"]
    architectures.demand_resnet(a, "the authors' code")
    method = architectures.method(config)
    if method != "mcl" or a.neck != "fpn":
        raise UserError(
            f"mcl-official holds MCL with an FPN; this checkpoint is {method} with neck {a.neck}. "
            "--to detectron2, --to torchvision and --to timm export its backbone"
        )
    networks = layout(a, levels)
    arrays = networks.to_file(state, "the checkpoint does not fit its own configuration")

    def fill(temporary: Path) -> None:
        path = temporary / out.name
        authors_files.write(path, arrays, int(meta["step"]))
        contents = authors_files.read(path).arrays
        networks.demand_same(contents, state)
        errors = selfcheck.check(
            contents, networks, state=state, a=a, parts=architectures.PARTS, config=config
        )
        models = {"the authors' code (load_from)": {"loads": "all", "from_scratch": "nothing"}}
        content = report.describe(
            "mcl-official",
            snapshot,
            model=arrays,
            sources=networks.sources,
            notes=[],
            models=models,
            reasons={},
        )
        content |= {"file": out.name, "self_check": errors}
        content |= {"sha256": formats.sha256(path)}
        report.write(temporary, content, f"{out.stem}.report")

    written = folder.write(out.parent, fill)
    return [
        *(f"wrote {path}" for path in written),
        f"{len(arrays)} arrays, iteration {int(meta['step'])}",
        "left out: the optimizer's momentum (the authors' code starts it at zero)",
    ]


def load(path: Path, config: Any, *, adopt: bool) -> tuple[TrainState, dict[str, Any], list[str]]:
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
    trees = strict.unflatten(layout(a, levels).from_file(content.arrays, subject))
    notes = [f"read {path.name}: {a.backbone}, {levels} levels, {len(content.arrays)} arrays"]
    if content.step is None:
        notes.append("the file names no iteration: starting at step 0")
    step = content.step or 0
    opt_state = _optimizer_state(
        content, trees["params"], a=a, levels=levels, config=plain, step=step, notes=notes
    )
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
    """The configured optimizer's state at `step`, with the file's momentum where it has one."""
    settings = fill(optimizer.OptimizerSettings, config["optimizer"])
    # The state does not depend on the schedule's values, only on there being one.
    lr = optimizer.learning_rate(settings, config["data"]["batch_size"], steps_per_epoch=1)
    state = optimizer.create(settings, params, lr).init(params)
    state = optax.tree_utils.tree_set(state, count=jnp.asarray(step, jnp.int32))
    if content.momentum is None:
        notes.append("the file has no optimizer momentum: starting from zero momentum")
        return state
    if settings.name == "adamw":
        raise UserError(f"{settings.name} cannot take over LARS momentum; use a lars or sgd config")
    rows = [t for t in tensors(a, levels) if t.source.startswith("params/")]
    expected = {t.authors: t.torch_shape for t in rows}
    strict.demand(strict.problems(content.momentum, expected), "the optimizer's momentum")
    # torch subtracts its buffer; optax adds its own, which already contains -learning rate.
    trace = {t.source: -table.from_torch(content.momentum[t.authors]) for t in rows}
    notes.append(f"imported the momentum of {len(rows)} parameters")
    return optax.tree_utils.tree_set(state, trace=strict.unflatten(trace)["params"])
