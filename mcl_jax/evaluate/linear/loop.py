"""The loop of a linear evaluation: train, save, resume, test, report (see evaluation.py).

A folder holds one evaluation: classifiers.npz (the newest state, replaced atomically),
metrics.jsonl with tensorboard/, and result.json once it is finished. The order of images and the
crops depend on (seed, step), so a killed evaluation goes on from its last saved state and repeats
the uninterrupted one bit by bit on the same devices.
"""

import json
import math
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from mcl_jax import program, sharding
from mcl_jax.data import loader_settings, pipeline
from mcl_jax.data.loader_settings import LoaderSettings
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import classifier
from mcl_jax.evaluate.linear.classifier import Classifiers
from mcl_jax.evaluate.linear.evaluation import Evaluation
from mcl_jax.report.metrics import MetricWriter
from mcl_jax.report.progress import Bar
from mcl_jax.runtime import json_files, lease, optional, storage
from mcl_jax.runtime.preemption import Preemption
from mcl_jax.runtime.storage import Place

INPUTS = ("image", "extent", "label")
STATE_FILE = "classifiers.npz"
RESULT_FILE = "result.json"


def run(
    evaluation: Evaluation, output: str | os.PathLike, *, owner: bool = False
) -> dict[str, Any] | None:
    """Trains the classifiers and tests them; the same folder resumes or repeats its result.

    Several processes need a folder that all of them see.

    Args:
      evaluation: of `evaluation.build`.
      output: folder, created; owned as long as this runs, see runtime/lease.py.
      owner: of the process, see `Preemption`.

    Returns:
      What result.json holds: 'dataset', 'train_split', 'test_split', 'train_images',
      'test_images' (those that could be read), 'classes', 'epochs', 'rows' [{'lr', 'top1', 'top5'}]
      with shares in [0, 1] and top5 only above 5 classes, and 'best': the row of the highest top1.
      With several learning rates the best is chosen on the test split itself, as is common.
      None if SIGTERM or SIGINT asked to stop; the state is saved then.

    Raises:
      UserError: if the folder holds another evaluation, or too many images cannot be read.

    Example:
      state, meta = checkpoint.read("runs/mcl")
      backbone = evaluation.frozen_backbone(state)
      run(evaluation.build(meta["config"], backbone, sharding.make_mesh()), "runs/linear")["best"]
    """
    output = storage.absolute(output)
    storage.reachable(output)
    optional.begin()
    with lease.hold(output):
        return _run(evaluation, output, owner=owner)


def _run(evaluation: Evaluation, output: Place, *, owner: bool) -> dict[str, Any] | None:
    storage.make_folder(output)
    conditions = identity(evaluation)
    saved = _load(output / STATE_FILE, conditions)
    settings = evaluation.settings
    state = saved or classifier.new(len(settings.lrs), evaluation.channels, evaluation.classes)
    start, result_path = int(state.step), output / RESULT_FILE
    if start == evaluation.total_steps and storage.exists(result_path):
        return json_files.read_json(result_path, "a finished evaluation", ("rows", "best"))
    first_process = jax.process_index() == 0
    writer = MetricWriter(output, start, enabled=first_process)
    try:
        with Preemption(owner=owner) as preemption:
            state = _train(
                evaluation,
                state,
                output=output,
                conditions=conditions,
                writer=writer,
                preemption=preemption,
            )
        if int(state.step) < evaluation.total_steps:
            return None
        result = _result(evaluation, _test(evaluation, state))
        if first_process:
            text = json.dumps(result, indent=2) + "\n"
            storage.write_result(result_path, text)
        rows = {f"{k}/lr{row['lr']:g}": row[k] for row in result["rows"] for k in row if k != "lr"}
        writer.write(evaluation.total_steps, rows)
        return result
    finally:
        writer.close()


def _train(
    evaluation: Evaluation,
    state: Classifiers,
    output: Place,
    conditions: Mapping[str, Any],
    writer: MetricWriter,
    preemption: Preemption,
) -> Classifiers:
    """Runs the remaining steps, or up to a signal; the last state is on disk on return."""
    settings, config = evaluation.settings, evaluation.config
    total, start = evaluation.total_steps, int(state.step)
    epoch = len(evaluation.train) / settings.batch_size
    save_every = max(1, round(settings.checkpoint_epochs * epoch))
    log_every = config["log"]["every_steps"]
    first_process = jax.process_index() == 0
    seed = np.asarray(config["seed"], np.uint32)
    state = jax.device_put(state, sharding.replicated(evaluation.mesh))
    if first_process:
        print(
            f"{len(evaluation.train)} images, {evaluation.mesh.size} {jax.default_backend()} "
            f"device(s), {epoch:.1f} steps per epoch, steps {start} to {total}"
            + (" (resumed)" if start else ""),
            file=sys.stderr,
        )
    bar = Bar(total=total, initial=start, unit="step", disable=not first_process)
    with (
        pipeline.batches(
            evaluation.train,
            _loader(evaluation),
            seed=config["seed"],
            start_step=start,
            shuffle=True,
        ) as batches,
        bar,
    ):
        values: dict[str, jax.Array] = {}
        for step in range(start + 1, total + 1):
            batch = _placed(evaluation, next(batches))
            jax.block_until_ready(values)  # one step in flight: no queue of batches on the device
            state, values = evaluation.train_step(evaluation.backbone, state, seed, batch)
            preemption.guard_work()
            stop = preemption.requested_after(step)
            if step % log_every == 0 or step == total or stop:
                _record(step, jax.device_get(values), lrs=settings.lrs, writer=writer, bar=bar)
            if (step % save_every == 0 or step == total or stop) and first_process:
                _save(output / STATE_FILE, jax.device_get(state), conditions)
            bar.update()
            if stop:
                break
    return state


def _record(
    step: int,
    values: Mapping[str, np.ndarray],
    lrs: tuple[float, ...],
    writer: MetricWriter,
    bar: Bar,
) -> None:
    named = {
        f"{name}/lr{lr:g}": float(value)
        for name, each in values.items()
        for lr, value in zip(lrs, each, strict=True)
    }
    writer.write(step, {name: value for name, value in named.items() if math.isfinite(value)})
    best = int(values["train_top1"].argmax())
    summary = f"lr {lrs[best]:g}: train top-1 {values['train_top1'][best]:.1%}"
    bar.set_postfix_str(summary, refresh=False)


def _test(evaluation: Evaluation, state: Classifiers) -> dict[str, np.ndarray]:
    """Counts over the test split: 'seen' [], 'top1' and 'top5' [L]."""
    counts: dict[str, np.ndarray] = {}
    with pipeline.evaluation_batches(evaluation.test, _loader(evaluation)) as batches:
        for batch in batches:
            placed = _placed(evaluation, batch)
            new = evaluation.test_step(evaluation.backbone, state.params, placed)
            counts = {k: counts.get(k, 0) + v for k, v in jax.device_get(new).items()}
    return counts


def _loader(evaluation: Evaluation) -> LoaderSettings:
    """What both passes over images share."""
    batch_size = evaluation.settings.batch_size
    return loader_settings.of_this_process(evaluation.config["data"], batch_size)


def _placed(evaluation: Evaluation, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """On the devices; what could not be read, and padding, is not counted."""
    label = np.where(batch["valid"], batch["label"], -1)
    inputs = {name: batch[name] for name in INPUTS} | {"label": label}
    return sharding.put_batch(inputs, evaluation.mesh)


def _result(evaluation: Evaluation, counts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    settings = evaluation.settings
    total = max(int(counts["seen"]), 1)
    shares = {name: counts[name] / total for name in counts if name != "seen"}
    rows = [
        {"lr": lr} | {name: float(share[i]) for name, share in shares.items()}
        for i, lr in enumerate(settings.lrs)
    ]
    return {
        "dataset": evaluation.config["data"]["dataset"],
        "train_split": settings.train_split,
        "test_split": settings.test_split,
        "train_images": len(evaluation.train),
        "test_images": int(counts["seen"]),
        "classes": evaluation.classes,
        "epochs": settings.epochs,
        "rows": rows,
        "best": max(rows, key=lambda row: row["top1"]),
    }


def as_text(result: Mapping[str, Any]) -> str:
    """The rows of a result for reading, in percent; the best is marked."""
    names = [name for name in ("top1", "top5") if name in result["best"]]
    lines = ["lr".rjust(10) + "".join(f"{name[:3]}-{name[3:]}".rjust(10) for name in names)]
    for row in result["rows"]:
        mark = "  best" if row == result["best"] and len(result["rows"]) > 1 else ""
        shares = "".join(f"{row[name]:.2%}".rjust(10) for name in names)
        lines.append(f"{row['lr']:g}".rjust(10) + shares + mark)
    return "\n".join(lines)


def identity(evaluation: Evaluation) -> dict[str, Any]:
    """What decides the result; a folder goes on only with the same."""
    config = program.plain_config(evaluation.config)
    weights = 0
    for leaf in jax.tree.leaves(jax.device_get(evaluation.backbone)):
        weights = zlib.crc32(np.ascontiguousarray(leaf), weights)
    conditions = {f"linear.{name}": value for name, value in asdict(evaluation.settings).items()}
    del conditions["linear.checkpoint_epochs"]
    for section, keys in (
        ("data", ("dataset", "image_size", "canvas_size")),
        ("augment", ("mean", "std")),
        ("numerics", ("compute_dtype", "bn_epsilon")),
    ):
        conditions |= {f"{section}.{key}": config[section][key] for key in keys}
    conditions |= {
        "seed": config["seed"],
        "train_images": len(evaluation.train),
        "backbone": weights,
    }
    return json.loads(json.dumps(conditions))


def _save(path: Place, state: Classifiers, conditions: Mapping[str, Any]) -> None:
    arrays = {"step": state.step, "identity": np.asarray(json.dumps(conditions))}
    for name in state.params:
        arrays |= {name: state.params[name], f"velocity_{name}": state.velocity[name]}
    storage.write_result(path, lambda file: np.savez(file, **arrays))


def _load(path: Place, conditions: Mapping[str, Any]) -> Classifiers | None:
    """The saved state as numpy; None if there is none."""
    if not storage.exists(path):
        return None
    names = ("kernel", "bias")
    keys = ("step", "identity", *names, *(f"velocity_{name}" for name in names))
    arrays = json_files.read_arrays(path, "a saved evaluation", keys)
    before = json.loads(str(arrays["identity"]))
    for name in sorted({*before, *conditions}):
        if before.get(name) != conditions.get(name):
            raise UserError(
                f"{path.parent} holds an evaluation with {name} {before.get(name)}, not "
                f"{conditions.get(name)}; give a new --output"
            )
    params = {name: arrays[name] for name in names}
    velocity = {name: arrays[f"velocity_{name}"] for name in names}
    return Classifiers(arrays["step"], params, velocity)
