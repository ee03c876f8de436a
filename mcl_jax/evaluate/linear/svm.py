"""VOC07-style linear SVMs on frozen maps (DetCo Table 10; Goyal et al., 2019): mAP over classes.

Shapes: n images, C classes, labels int8 [n, C] of `data.image_labels`.

Features are average-pooled stages of the backbone (running statistics) of the whole image resized
to a square, of unit length. svm_fit.py trains machines, svm_measure.py says what they are worth.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax import program, sharding
from mcl_jax.data.image_labels import LabeledImages, open_coco, open_labeled
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate.linear import frozen_features, svm_fit
from mcl_jax.evaluate.linear.svm_fit import Split
from mcl_jax.evaluate.linear.svm_measure import SVMSettings, measure
from mcl_jax.settings.records import fill


def open_splits(
    config: Mapping[str, Any], files: Mapping[str, str] | None
) -> tuple[LabeledImages, LabeledImages]:
    """The images that train and that test; what is wrong in `svm` is said before they are read.

    Args:
      config: names data set and splits where there are no files.
      files: 'train_json', 'train_images', 'test_json', 'test_images', see `image_labels.open_coco`.

    Raises:
      UserError: for a wrong value, what cannot be opened, and data without labels; scikit-learn is
        missing.
    """
    settings = fill(SVMSettings, config["svm"])
    svm_fit.check_installed()
    if files is not None:
        pairs = ((files[f"{name}_json"], files[f"{name}_images"]) for name in ("train", "test"))
        return tuple(open_coco(*pair) for pair in pairs)
    data, first = config["data"], jax.process_index() == 0
    splits, data_dir = (settings.train_split, settings.test_split), data["data_dir"] or None
    for split in splits:
        open_source(data["dataset"], split, data_dir)  # a wrong name is said before labels are read
    return tuple(open_labeled(data["dataset"], split, data_dir, progress=first) for split in splits)


def run(
    config: Mapping[str, Any],
    backbone: Mapping[str, Any],
    train: LabeledImages,
    test: LabeledImages,
    mesh: Mesh,
) -> dict[str, Any]:
    """Trains and tests the machines of every class at every stage of `svm.stages`.

    Args:
      config: as configs/base.py; the network's sections as in pre-training.
      backbone: see `evaluation.frozen_backbone`.
      train, test: of the same classes.
      mesh: devices that compute features; the machines are trained on the first process's CPUs.

    Returns:
      See `measure`; {} on other processes than the first.

    Raises:
      UserError: as `measure`; the splits have other classes, or too many images cannot be read.

    Example:
      state, meta = checkpoint.read("runs/mcl")
      train, test = open_splits(meta["config"], None)
      backbone = evaluation.frozen_backbone(state)
      run(meta["config"], backbone, train=train, test=test, mesh=sharding.make_mesh())["stages"]
    """
    settings = fill(SVMSettings, config["svm"])
    if train.class_names != test.class_names:
        raise UserError(
            f"the splits have other classes: {train.name} has {len(train.class_names)}, "
            f"{test.name} has {len(test.class_names)}, or other names"
        )
    splits = _splits(config, settings, backbone=backbone, images=(train, test), mesh=mesh)
    if jax.process_index() != 0:
        return {}
    return measure(settings, config["seed"], train.class_names, *splits)


def _splits(
    config: Mapping[str, Any],
    settings: SVMSettings,
    backbone: Mapping[str, Any],
    images: tuple[LabeledImages, LabeledImages],
    mesh: Mesh,
) -> list[dict[str, Split]]:
    """Per split {stage: features and labels of the readable images}."""
    batch_size = max(1, settings.batch_size // mesh.size) * mesh.size
    compute = frozen_features.feature_function(config, settings.stages, mesh)
    backbone = jax.device_put(backbone, sharding.replicated(mesh))
    splits = []
    for each, name in zip(images, ("train", "test"), strict=True):
        index, features = frozen_features.collect(
            compute,
            backbone,
            source=each.source,
            config=config,
            batch_size=batch_size,
            mesh=mesh,
            name=f"features, {name}",
        )
        labels = each.labels[index]
        splits.append({s: Split(x.astype(np.float64), labels) for s, x in features.items()})
    return splits


def described(config: Mapping[str, Any], files: Mapping[str, str | None]) -> dict[str, Any]:
    """What decides a result, for its JSON file; see `open_splits` for the files."""
    plain = program.plain_config(config)
    data = {key: plain["data"][key] for key in ("dataset", "image_size", "canvas_size")}
    settings = dict(plain["svm"])
    if any(files.values()):
        data |= {"dataset": dict(files)}
        del settings["train_split"], settings["test_split"]
    return {"seed": plain["seed"], "data": data, "svm": settings}
