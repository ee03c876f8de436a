"""The probes of one checkpoint: modes x label budgets, one folder each, and all results together.

OUTPUT/result.json holds all finished probes, OUTPUT/MODE-LABELS-seedSEED/ one of them: result.json,
boxes.png, and state.npz while it is not finished. What is finished is never computed again.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection import probe
from mcl_jax.evaluate.detection.data import ProbeData
from mcl_jax.evaluate.detection.detector import ProbeSettings
from mcl_jax.evaluate.detection.training import STATE_FILE, Conduct, check_identity
from mcl_jax.evaluate.monitor import encoder_of, read_parts, trained_levels
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.pyramid import COARSEST, PYRAMID_LEVELS
from mcl_jax.objectives.build import make_objective
from mcl_jax.report import sheets
from mcl_jax.runtime import json_files, lease, optional, provenance, storage, workdir_names
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.records import fill
from mcl_jax.settings.rules import whole_number

RESULT_FILE, PICTURE_FILE = "result.json", "boxes.png"
_PICTURED = 12  # test images on the picture, with the best detections of each
_BEST = 4


@dataclass(frozen=True)
class Subject:
    """A network that is probed.

    Attributes:
      config: the checkpoint's, with the `probe` section to go by.
      variables: {'params': {'backbone': ..., 'fpn': ...}, 'batch_stats': the same}.
      levels: pyramid levels that pre-training reached, e.g. {'P5', 'P4'}.
      about: what it is, for the result: 'method', 'step', 'workdir'.
    """

    config: Mapping[str, Any]
    variables: Mapping[str, Any]
    levels: frozenset[str]
    about: Mapping[str, Any]


def pretrained(
    state: Mapping[str, Any], config: Mapping[str, Any], about: Mapping[str, Any]
) -> Subject:
    """What a checkpoint holds; `state` is that of `checkpoint.read`."""
    variables = {kind: read_parts(state.get(kind)) for kind in ("params", "batch_stats")}
    levels = {f"P{COARSEST - s}" for s in trained_levels(variables["params"], config)}
    return Subject(config, variables, levels=frozenset(levels), about=about)


def untrained(config: Mapping[str, Any]) -> Subject:
    """The network of a configuration as it is before pre-training, of `config.seed`."""
    objective = make_objective(config, 4**PYRAMID_LEVELS, norm_axis=None)
    state = jax.jit(objective.init)(key_for(np.uint32(config["seed"]), 0, 0, Purpose.INIT))
    variables = {
        kind: {"backbone": jax.device_get(tree["encoder"].get("backbone", {}))}
        for kind, tree in (("params", state.params), ("batch_stats", state.batch_stats))
        if "encoder" in tree
    }
    return Subject(config, variables, levels=frozenset(), about={"method": "random weights"})


def applicable(subject: Subject) -> tuple[str, ...]:
    """The modes that a network can have: its own FPN is frozen only where all of it is trained."""
    levels = fill(ProbeSettings, subject.config["probe"]).levels
    complete = "fpn" in subject.variables["params"] and subject.levels.issuperset(levels)
    return tuple(mode for mode, frozen in probe.MODES.items() if complete or "fpn" not in frozen)


def budgets(texts: Sequence[str]) -> tuple[int | None, ...]:
    """'50', 'all' -> 50, None; UserError for what is neither a positive number nor 'all'."""
    for text in texts:
        if text != "all" and not whole_number(text):
            raise UserError(f"--labels {text!r} is neither a number of images nor 'all'")
    if not texts:
        raise UserError("--labels is empty; give e.g. 50,110,all")
    return tuple(None if text == "all" else int(text) for text in dict.fromkeys(texts))


def run(
    subject: Subject,
    data: ProbeData,
    output: str | os.PathLike,
    *,
    modes: Sequence[str],
    labels: Sequence[int | None],
    seed: int,
    mesh: Mesh,
    conduct: Conduct,
) -> list[dict[str, Any]]:
    """Probes with every mode and label budget.

    Args:
      subject: the network.
      data: of `data.load`.
      output: folder, created; owned as long as this runs, see runtime/lease.py.
      modes: of `probe.MODES`; empty: all that apply.
      labels: budgets in images; None: all.
      seed: see `probe.prepare`.
      mesh: devices to run on.
      conduct: its folder is not read.

    Returns:
      What result.json holds, a row for each probe: 'mode', 'labels', 'seed', 'scores' (as
      `average_precision` says, without what is not defined), 'network', 'settings', 'devices',
      'seconds', 'images_per_s', 'commit', 'unreadable', 'identity'.

    Raises:
      UserError: as `probe.prepare`, all before the first training; for a folder of other probes.
      training.Stopped: asked by `conduct`; the same call goes on later.
    """
    output = storage.absolute(output)
    storage.reachable(output)
    prepared = _prepare(subject, data, modes=_fitting(subject, modes), labels=labels, seed=seed)
    workdir_names.demand_usable(output, prepared)
    rows = []
    optional.begin()
    with lease.hold(output):
        for name, one in prepared.items():
            print(
                f"{name}: {len(one.train)} images to train on, {len(one.test)} to test",
                file=sys.stderr,
            )
            rows.append(_row(subject, one, folder=output / name, mesh=mesh, conduct=conduct))
        storage.write_result(output / RESULT_FILE, json.dumps(rows, indent=1) + "\n")
    return rows


def _fitting(subject: Subject, modes: Sequence[str]) -> tuple[str, ...]:
    """The modes, all that apply if there are none; UserError for one that does not apply."""
    fitting = applicable(subject)
    for mode in modes:
        if mode in probe.MODES and mode not in fitting:
            raise UserError(
                f"mode {mode!r} freezes the FPN, but {subject.about['method']} did not train all of "
                f"{', '.join(subject.config['probe']['levels'])}; use {', '.join(fitting)}"
            )
    return tuple(modes) or fitting


def _prepare(
    subject: Subject, data: ProbeData, modes: Sequence[str], labels: Sequence[int | None], seed: int
) -> dict[str, probe.Prepared]:
    """Folder -> probe, with a warning for classes that a budget has no box of."""
    encoder = encoder_of(subject.config)
    prepared = {
        (mode, count): probe.prepare(
            subject.config, encoder.architecture, encoder.numerics, subject.variables,
            mode=mode, seed=seed, data=data, labels=count,
        )
        for count in labels
        for mode in modes
    }  # fmt: skip
    _warn_of_missing_classes(data, [p for (mode, _), p in prepared.items() if mode == modes[0]])
    return {
        f"{mode}-{'all' if count is None else count}-seed{seed}": one
        for (mode, count), one in prepared.items()
    }


def _row(
    subject: Subject, prepared: probe.Prepared, folder: Place, mesh: Mesh, conduct: Conduct
) -> dict[str, Any]:
    """One probe, or its result if it is finished."""
    path = folder / RESULT_FILE
    # As it is read back: tuples become lists.
    identity = json.loads(json.dumps(prepared.identity))
    if storage.exists(path):
        row = json_files.read_json(
            path, "a finished probe", ("mode", "labels", "scores", "identity")
        )
        check_identity(row["identity"], identity, folder)
        return row
    storage.make_folder(folder)
    probed = probe.measure(prepared, mesh, replace(conduct, folder=folder))
    s = prepared.detector.settings
    row = {
        "mode": identity["mode"],
        "labels": len(prepared.train),
        "test_images": len(prepared.test),
        "seed": prepared.seed,
        "scores": {k: v for k, v in probed.scores.items() if math.isfinite(v)},
        "network": dict(subject.about),
        "settings": dict(subject.config["probe"]),
        "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
        "seconds": {"train": round(probed.train_s, 1), "test": round(probed.test_s, 1)},
        "images_per_s": {
            "train": round(probed.steps * s.batch_size / max(probed.train_s, 1e-9), 1),
            "test": round(len(prepared.test) / max(probed.test_s, 1e-9), 1),
        },
        "commit": provenance.commit(),
        "unreadable": sorted({*prepared.train.unreadable, *prepared.test.unreadable}),
        "identity": identity,
    }
    with optional.optional(PICTURE_FILE):
        _draw(folder / PICTURE_FILE, prepared, probed)
    storage.write_result(path, json.dumps(row, indent=1) + "\n")
    with optional.optional(f"removal of {STATE_FILE}"):
        storage.remove(folder / STATE_FILE)
    return row


def _warn_of_missing_classes(data: ProbeData, prepared: Sequence[probe.Prepared]) -> None:
    """A file that is sorted by class gives small budgets without some classes."""
    for one in prepared:
        if len(one.train) == len(data.train) or len(one.train) > 1000:
            continue  # reading thousands of images for a warning takes too long
        labels = one.train.read(range(len(one.train))).truth.labels
        missing = [name for i, name in enumerate(data.train.class_names) if not (labels == i).any()]
        if missing:
            print(
                f"warning: the budget of {len(one.train)} images has no box of {', '.join(missing)}"
                "; another --seed draws other images",
                file=sys.stderr,
            )


def _draw(path: Place, prepared: probe.Prepared, probed: probe.Probed) -> None:
    """The first test images with true boxes and the best detections."""
    count = min(_PICTURED, len(prepared.test))
    batch, names = prepared.test.read(range(count)), prepared.train.class_names
    images, truth, detections = [], [], []
    for i, (height, width) in enumerate(batch.extents):
        images.append(batch.images[i, :height, :width] / 255)
        real = zip(batch.truth.labels[i], batch.truth.boxes[i], strict=True)
        truth.append([(names[label], box) for label, box in real if label >= 0])
        d = jax.tree.map(lambda x, i=i: x[i, :_BEST], probed.detections)
        detections.append(
            [
                (f"{names[label]} {score:.2f}", box)
                for box, label, score in zip(*d, strict=True)
                if score > 0
            ]
        )
    title = (
        f"{prepared.identity['mode']}, {len(prepared.train)} labeled images: "
        f"AP {100 * probed.scores['ap']:.1f}; true boxes green, the best {_BEST} found red, dashed"
    )
    sheets.boxes(path, images, truth=truth, detections=detections, title=title)


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for reading, in percent."""
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    heads = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    lines = ["mode".ljust(14) + "labels".rjust(8) + "".join(head.rjust(8) for head in heads)]
    for row in rows:
        cells = [row["scores"].get(name) for name in columns]
        text = "".join(("-" if c is None else f"{100 * c:.2f}").rjust(8) for c in cells)
        lines.append(row["mode"].ljust(14) + str(row["labels"]).rjust(8) + text)
    return "\n".join(lines)
