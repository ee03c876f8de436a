"""Detection probe: how much a pre-trained network helps a small detector with few labeled images.

Shapes: n images of a set, N boxes of an image (padded), D detections of an image; boxes are
float [4] (ymin, xmin, ymax, xmax) in px.
"""

import dataclasses
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.average_precision import average_precision
from mcl_jax.evaluate.detection.boxed_images import BoxedSet, Truth
from mcl_jax.evaluate.detection.data import ProbeData
from mcl_jax.evaluate.detection.detector import PARTS, Detector, ProbeSettings
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.evaluate.detection.training import Conduct, detect, fit, one_device
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.report import coco_scores
from mcl_jax.settings.records import fill

# Mode -> what of the pre-trained parts stays as it is; the others are trained. 'backbone' trains a
# new FPN: the same for every method, whether it pre-trains one or not.
MODES = {"backbone": ("backbone",), "backbone+fpn": ("backbone", "fpn"), "tuned": ()}


class Probed(NamedTuple):
    """A finished probe.

    Attributes:
      scores: of `average_precision`.
      truth, detections: of all test images.
      steps: of this call's training; less than all of them if it went on with a saved state.
      train_s, test_s: seconds of this call's training and test, compilation included.
    """

    scores: dict[str, float]
    truth: Truth
    detections: Detections
    steps: int
    train_s: float
    test_s: float


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A probe that is ready to run.

    Attributes:
      detector: what is trained and tested.
      by_part: what is taken over from pre-training, {part: {'params', 'batch_stats'}}.
      train, test: labeled images.
      seed: see `prepare`.
      identity: what decides the result, for a folder to go on only with the same.
    """

    detector: Detector
    by_part: Mapping[str, Any]
    train: BoxedSet
    test: BoxedSet
    seed: int
    identity: Mapping[str, Any]


def prepare(
    config: Mapping[str, Any],
    architecture: Architecture,
    numerics: Numerics,
    variables: Mapping[str, Any],
    *,
    mode: str,
    seed: int,
    data: ProbeData,
    labels: int | None = None,
) -> Prepared:
    """Checks everything that a probe is given, before anything is computed.

    Probes of networks of the same sizes share one compilation.

    Args:
      config: `probe` and `augment.mean`, `augment.std` are read.
      architecture, numerics: of the pre-trained network.
      variables: {'params': {'backbone': ..., 'fpn': ...}, 'batch_stats': the same}. Without
        'fpn' (a method that trains the backbone alone, or a C4 network) a random FPN is trained.
      mode: of `MODES`. What stays frozen keeps its running statistics too; all that is trained has
        one learning rate.
      seed: of the new parts' parameters, of the order of images, and of the label budget.
      data: of `data.load`.
      labels: labeled images to train on, see `BoxedSet.first`; None: all.

    Raises:
      UserError: settings that do not fit together; a mode that this network cannot have; more
        labels than there are; no pycocotools.
    """
    coco_scores.pycocotools()  # missing: said before any training
    by_part = _parts(variables, mode)
    train = data.train.first(labels, seed)
    detector = Detector(
        settings=fill(ProbeSettings, config["probe"]),
        # What is regularized in pre-training by leaving branches out is plainly computed here.
        architecture=dataclasses.replace(architecture, drop_path=0.0),
        numerics=dataclasses.replace(numerics, axis_name=None),
        mean=tuple(config["augment"]["mean"]),
        std=tuple(config["augment"]["std"]),
        classes=len(train.class_names),
        trained=tuple(part for part in PARTS if part not in MODES[mode] or part not in by_part),
    )
    identity = _identity(detector, by_part) | {
        "mode": mode,
        "seed": seed,
        "labels": len(train),
        "rows": zlib.crc32(np.asarray(train.rows, np.int64)),
        "test_images": len(data.test),
        "classes": list(train.class_names),
    }
    return Prepared(detector, by_part, train=train, test=data.test, seed=seed, identity=identity)


def measure(prepared: Prepared, mesh: Mesh | None = None, conduct: Conduct | None = None) -> Probed:
    """Trains a detector on top of a pre-trained network and tests it.

    Args:
      prepared: of `prepare`.
      mesh: devices to run on; None: the default device.
      conduct: where the state is kept, bars, threads.

    Returns:
      `scores` are as `average_precision` says: 'ap', 'ap50', 'ap75', 'ap_small', 'ap_medium',
      'ap_large' and more.

    Raises:
      training.Stopped: if `conduct` asks for it.

    Example:
      prepared = prepare(
          config, architecture, numerics, variables, mode="backbone", seed=0, data=load(config),
          labels=110,
      )
      scores = measure(prepared).scores
    """
    mesh, conduct = mesh or one_device(), conduct or Conduct()
    detector, train = prepared.detector, prepared.train
    started = time.monotonic()
    fitted, steps = fit(
        detector, prepared.by_part, train, prepared.seed,
        mesh=mesh, conduct=conduct, identity=prepared.identity,
    )  # fmt: skip
    jax.block_until_ready(fitted)
    trained = time.monotonic()
    truth, detections = detect(detector, fitted, prepared.test, mesh=mesh, conduct=conduct)
    test_s = time.monotonic() - trained
    scores = average_precision(
        truth, detections, class_names=train.class_names, area_bounds=detector.settings.area_bounds
    )
    return Probed(
        scores, truth, detections=detections, steps=steps, train_s=trained - started, test_s=test_s
    )


def _parts(variables: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """{part: {'params', 'batch_stats'}} of what a mode takes over from pre-training."""
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    offered = ("backbone",) if mode == "backbone" else ("backbone", "fpn")
    names = [part for part in offered if part in variables["params"]]
    if missing := [part for part in MODES[mode] if part not in names]:
        raise UserError(
            f"mode {mode!r} freezes {' and '.join(missing)}, which this method does not pre-train"
        )
    # A network without batch normalization has no running statistics.
    statistics = variables.get("batch_stats", {})
    return {
        part: {"params": variables["params"][part], "batch_stats": statistics.get(part, {})}
        for part in names
    }


def _identity(detector: Detector, by_part: Mapping[str, Any]) -> dict[str, Any]:
    """Of the detector and of the pre-trained weights."""
    weights = 0
    for leaf in jax.tree.leaves(by_part):
        weights = zlib.crc32(np.ascontiguousarray(leaf), weights)
    identity = {f"probe.{k}": v for k, v in dataclasses.asdict(detector.settings).items()}
    for name in ("cache_gb", "checkpoint_steps", "train_images", "eval_images"):
        # no number depends on them, or the images are in the identity themselves
        del identity[f"probe.{name}"]
    return identity | {"weights": weights, "dtype": np.dtype(detector.numerics.dtype).name}
