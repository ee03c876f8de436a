"""A fine-tuning run: data and detector, training, test, and what is written. Needs torchvision.

Shapes: see mcl_jax/finetune/images.py. Arrays of weights have torch's names and layouts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mcl_jax.data.coco_json import Image
from mcl_jax.finetune import (
    images,
    job,
    machine,
    names,
    networks,
    pictures,
    precision,
    schedule,
    settings,
    testing,
    training,
)
from mcl_jax.finetune.images import Annotated
from mcl_jax.finetune.job import Job
from mcl_jax.runtime import lease

# (file, name of the network in it or None) -> (arrays by torchvision's names, notes for the user)
Reader = Callable[[Path, str | None], tuple[Mapping[str, np.ndarray], list[str]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """What is trained and tested on.

    Attributes:
      train, test: the annotation files.
      chosen: training images.
      tested: test images.
      category_ids: of the test file, in the order of the training file's classes.
    """

    train: Annotated
    test: Annotated
    chosen: list[Image]
    tested: list[Image]
    category_ids: list[int]

    def about(self) -> dict[str, Any]:
        """For result.json."""
        return {
            "train_json": str(self.train.json),
            "train_images": len(self.chosen),
            "train_boxes": self.count(self.train, self.chosen),
            "test_json": str(self.test.json),
            "test_images": len(self.tested),
            "test_boxes": self.count(self.test, self.tested),
            "class_names": list(self.train.instances.class_names),
        }

    @staticmethod
    def count(data: Annotated, some: list[Image]) -> int:
        """Boxes of some images."""
        return sum(len(images.objects(data.instances, image)) for image in some)

    def classes_without_boxes(self) -> list[str]:
        """Classes that cannot be learned."""
        instances = self.train.instances
        labels = {x.label for image in self.chosen for x in images.objects(instances, image)}
        return [name for i, name in enumerate(instances.class_names) if i not in labels]


def read_data(task: Job) -> Data:
    """Reads both annotation files.

    Raises:
      UserError: for what is wrong with them, or does not go with the settings.
    """
    train = images.read(task.train_json, task.train_images)
    test = images.read(task.test_json, task.test_images)
    ids = testing.category_order(train.instances, test.instances, task.test_json)
    labels, seed = task.settings.labels, task.settings.labels_seed
    chosen = images.training_images(train.instances, labels, seed)
    tested = list(test.instances.images[: task.settings.eval_images])
    if task.settings.detector == "maskrcnn":
        images.demand_segmentations(train, chosen)
        images.demand_segmentations(test, tested)
    return Data(train, test, chosen=chosen, tested=tested, category_ids=ids)


def build(task: Job, classes: int, read_weights: Reader) -> tuple[nn.Module, dict, list[str]]:
    """(detector, where its weights come from, the same in words).

    New layers start from the same numbers in every run of a seed, whatever the rest comes from.

    Raises:
      UserError: the weights do not fit.
    """
    torch.manual_seed(schedule.torch_seed(task.settings.seed, schedule.Draw.INIT, 0))
    detector = networks.build(task.settings, classes)
    if task.weights is None:
        return detector, {"weights": "random"}, ["weights: random"]
    path = job.weights_file(task.weights)
    arrays, notes = read_weights(path, task.network)
    file = {name: tuple(x.shape) for name, x in arrays.items()}
    match = names.match(networks.shapes(detector), file, task.parts)
    networks.load(detector, arrays, match)
    origin = {"weights": job.checksum(path), "network": task.network, "parts": list(match.parts)}
    return detector, origin, [f"weights: {path}", *notes, *match.lines()]


def run(task: Job, read_weights: Reader, say: Say) -> dict[str, Any] | None:
    """Trains, tests and writes; goes on where a run in the same folder was stopped.

    Args:
      read_weights: UserError for what is no file of weights.
      say: receives lines for the user.

    Returns:
      What result.json holds; None where a stop was asked for, or if the task is only to check.

    Raises:
      UserError: for every mistake that the user can mend, and if another run is at the folder.
    """
    device = machine.device(task.device)
    threads, workers = machine.set_threads(task.threads), machine.workers(task.workers, device)
    data = read_data(task)
    detector, origin, words = build(task, len(data.category_ids), read_weights)
    about = data.about()
    say(f"device: {device}, {threads}; processes that read images: {workers}")
    for kind in ("train", "test"):
        count, boxes = about[f"{kind}_images"], about[f"{kind}_boxes"]
        say(f"{kind}: {count} images with {boxes} boxes of {about[f'{kind}_json']}")
    if missing := data.classes_without_boxes():
        say(f"WARNING: no training box of {', '.join(missing)}")
    for line in words:
        say(line)
    if task.check:
        return None
    files = {"train_json": task.train_json, "test_json": task.test_json}
    inputs = {key: job.checksum(path) for key, path in files.items()}
    identity = settings.as_json(task.settings) | origin | inputs
    if result := job.finished(task.folder, identity):
        say(f"{task.folder / job.RESULT} is finished already")
        return result
    with lease.hold(task.folder):
        state = training.start(detector.to(device), task.settings, identity)
        if state.restore(task.folder):
            say(f"goes on from step {state.step} of {task.settings.steps} in {task.folder}")
        stream = images.Stream(data.train, data.chosen, task.settings)
        if not training.train(state, stream, task, workers=workers):
            say(f"stopped after step {state.step}: the same command goes on")
            return None
        return _test(task, data, state, workers=workers, about=about)


def _test(
    task: Job, data: Data, state: training.Run, *, workers: int, about: dict[str, Any]
) -> dict[str, Any]:
    """Detections, AP, picture and result.json of a trained detector."""
    options, began = task.settings, time.perf_counter()
    detector = state.detector
    detections = testing.detect(
        detector,
        data.test,
        tested=data.tested,
        category_ids=data.category_ids,
        settings=options,
        workers=workers,
    )
    kinds = {"scores": "bbox"} | ({"mask_scores": "segm"} if options.detector == "maskrcnn" else {})
    scores = {
        key: precision.average_precision(
            data.test.instances,
            data.tested,
            detections=detections,
            kind=kind,
            area_bounds=options.area_bounds,
            max_detections=options.max_detections,
        )
        for key, kind in kinds.items()
    }
    test_s = time.perf_counter() - began
    examples = data.tested[: task.pictures]
    pictures.sheet(
        task.folder / job.PICTURE,
        data.test,
        images=examples,
        detections=detections,
        least_score=task.least_score,
    )
    job.write_json(task.folder / job.DETECTIONS, detections)
    result = {
        "tool": "finetune_torchvision",
        "detector": options.detector,
        "weights": str(task.weights) if task.weights else "random",
        "labels": len(data.chosen),
        "test_images": len(data.tested),
        "seed": options.seed,
        **scores,
        "settings": settings.as_json(options),
        "data": about,
        "device": machine.device_name(next(detector.parameters()).device),
        "versions": machine.versions(),
        "seconds": {"train": round(state.seconds, 1), "test": round(test_s, 1)},
        "images_seen": options.steps * options.batch_size,
        "losses": state.losses,
        "identity": dict(state.identity),
    }
    job.write_json(task.folder / job.RESULT, result)
    return result
