"""Linear evaluation of a frozen backbone (paper appendix B).

Shapes: b images of this device, B of all; canvas side C, image side H in px; F channels of res5;
L learning rates, one classifier each (see classifier.py).

Only the backbone is used, with running BN statistics; features are average-pooled res5. Images are
split over the data axis, classifiers replicated, and all of them trained on the same features in
one program: a grid of learning rates costs hardly more than one. A crop depends on (seed, step,
position in the global batch) alone. loop.py runs what is built here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mcl_jax import sharding
from mcl_jax.data.record import Source, why_unlabeled
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate import embedding
from mcl_jax.evaluate.linear import classifier
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.heads import pool
from mcl_jax.models.layers import Context
from mcl_jax.objectives.build import numerics_of
from mcl_jax.settings.records import fill
from mcl_jax.views import augment, color, resample

Array = jax.Array


@dataclass(frozen=True)
class LinearSettings:
    """The keys of `config.linear`; units and sources stand in configs/base.py.

    The paper gives only the learning rate's start (10, for batches of 256) and no schedule; 'cosine'
    to 0 is this project's default. Nothing rescales `lrs` for other batch sizes.
    """

    train_split: str
    test_split: str
    batch_size: int
    lrs: tuple[float, ...]
    momentum: float
    weight_decay: float
    epochs: float
    schedule: str
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip_prob: float
    checkpoint_epochs: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's static parts, compiled at most once. Build with `build`.

    Attributes:
      train_step: (backbone, classifiers, seed, batch) -> (classifiers, metrics of float32 [L]).
      test_step: (backbone, params, batch) -> {'seen': int32 [], 'top1', 'top5': int32 [L]}.
    """

    config: Mapping[str, Any]
    settings: LinearSettings
    mesh: Mesh
    train: Source
    test: Source
    classes: int
    channels: int
    total_steps: int
    backbone: Any
    train_step: Callable
    test_step: Callable


def frozen_backbone(state: Mapping[str, Any]) -> dict[str, Any]:
    """The flax variables of the online backbone out of a checkpoint's state (`checkpoint.read`)."""
    statistics = state["batch_stats"].get("encoder", {}).get("backbone", {})  # Swin has none
    return {"params": state["params"]["encoder"]["backbone"], "batch_stats": statistics}


def build(config: Mapping[str, Any], backbone: Mapping[str, Any], mesh: Mesh) -> Evaluation:
    """Puts an evaluation together.

    Args:
      config: as configs/base.py; the network's sections as in pre-training.
      backbone: see `frozen_backbone`.
      mesh: devices to run on.

    Raises:
      UserError: for a wrong value, data set or split, and for data without labels.
    """
    settings = fill(LinearSettings, config["linear"])
    sharding.images_per_device(settings.batch_size, mesh, "linear.batch_size")
    data = config["data"]
    train, test = (
        open_source(data["dataset"], split, data["data_dir"] or None)
        for split in (settings.train_split, settings.test_split)
    )
    classes = _classes(data["dataset"], train, test)
    total_steps = max(1, round(settings.epochs * len(train) / settings.batch_size))
    lr = classifier.learning_rates(settings.lrs, settings.schedule, total_steps)
    network = make_backbone(fill(Architecture, config["model"]), numerics_of(config))
    features = partial(pooled_res5, network)
    image_settings = dict(
        image_size=data["image_size"], mean=config["augment"]["mean"], std=config["augment"]["std"]
    )
    images = jax.ShapeDtypeStruct((1, data["image_size"], data["image_size"], 3), jnp.float32)
    train_body = partial(
        _train_body,
        features=features,
        view=partial(training_view, settings=settings, **image_settings),
        lr=lr,
        settings=settings,
    )
    test_body = partial(
        _test_body, features=features, view=partial(embedding.center_view, **image_settings)
    )
    return Evaluation(
        config=config,
        settings=settings,
        mesh=mesh,
        train=train,
        test=test,
        classes=classes,
        channels=jax.eval_shape(features, backbone, images).shape[-1],
        total_steps=total_steps,
        backbone=jax.device_put(backbone, sharding.replicated(mesh)),
        train_step=_mapped(train_body, mesh),
        test_step=_mapped(test_body, mesh),
    )


def pooled_res5(network: Any, backbone: Mapping[str, Any], images: Array) -> Array:
    """[b, H, W, 3] -> average-pooled res5 float32 [b, F], with running statistics."""
    return pool(network.apply(backbone, images, Context((images.shape[0],), train=False))["res5"])


def _mapped(body: Callable, mesh: Mesh) -> Callable:
    """jit of (*replicated, batch): `body` on every device's part of the batch."""
    specs = (sharding.STATE_SPEC, sharding.BATCH_SPEC)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=sharding.STATE_SPEC)
    return jax.jit(lambda *arguments: mapped(arguments[:-1], arguments[-1]))


def _classes(dataset: str, train: Source, test: Source) -> int:
    if reason := why_unlabeled(train) or why_unlabeled(test):
        raise UserError(
            f"{dataset} has no labels ({reason}); linear evaluation needs a TFDS data set with a "
            "label, or a folder whose sub-folders are the classes"
        )
    if train.class_names != test.class_names:
        raise UserError(
            f"{dataset}: the splits have other classes ({len(train.class_names)} in training, "
            f"{len(test.class_names)} in test, or other names)"
        )
    return len(train.class_names)


def training_view(
    key: Array, canvas: Array, extent: Array, settings: LinearSettings, image_size: int, mean, std
) -> Array:
    """Random resized crop and flip of one uint8 [C, C, 3] canvas: float32 [H, H, 3] normalized."""
    box_key, flip_key = jax.random.split(key)
    box = augment.draw_box(box_key, extent, area=settings.area, aspect=settings.aspect)
    flip = jax.random.bernoulli(flip_key, settings.flip_prob)
    planes = resample.crop(canvas, box, flip, image_size=image_size)
    return color.standardize(planes, mean, std).transpose(0, 2, 1)


def _train_body(state, batch, *, features, view, lr, settings):
    """One step on one device's images; the state is (backbone, classifiers, seed)."""
    backbone, classifiers, seed = state
    b = batch["label"].shape[0]
    positions = jax.lax.axis_index(sharding.DATA_AXIS) * b + jnp.arange(b)
    key = key_for(seed, classifiers.step, key_group=0, purpose=Purpose.PROBE)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    views = jax.vmap(view)(keys, batch["image"], batch["extent"])
    return classifier.update(
        classifiers,
        features(backbone, views),
        labels=batch["label"],
        lr=lr(classifiers.step),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        axis_name=sharding.DATA_AXIS,
    )


def _test_body(state, batch, *, features, view):
    """Counts over all devices' images; the state is (backbone, params)."""
    backbone, params = state
    classes = params["bias"].shape[-1]
    embedded = features(backbone, jax.vmap(view)(batch["image"], batch["extent"]))
    counts = {"seen": (batch["label"] >= 0).sum()}
    for k in (1, 5):
        if k == 1 or classes > k:
            counts[f"top{k}"] = classifier.hits(params, embedded, labels=batch["label"], k=k)
    return jax.lax.psum(counts, sharding.DATA_AXIS)
