"""Detection probe: how much a pre-trained network helps a small detector with few labeled scenes.

Shapes: n images, H their side in px, N boxes of an image (padded), D detections of an image;
boxes are float [4] (ymin, xmin, ymax, xmax) in px.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mcl_jax.evaluate.detection import fcos
from mcl_jax.evaluate.detection.average_precision import average_precision, check_installed
from mcl_jax.evaluate.detection.boxed_images import BoxedImages, load_scenes, with_mirrored
from mcl_jax.evaluate.detection.detector import PARTS, Detector, ProbeSettings
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.objectives.build import settings as settings_from

Array = jax.Array
Data = tuple[BoxedImages, BoxedImages]


def load(data_dir: str | None, settings: ProbeSettings) -> Data:
    """What `probe` takes as `data`: scenes to train on and scenes to test on.

    Args:
      data_dir: where the scenes lie or go; None or empty: $MCL_JAX_DATA or ~/.cache/mcl_jax.
    """
    return (
        load_scenes(data_dir or None, "train", settings.train_images, settings.image_size),
        load_scenes(data_dir or None, "validation", settings.eval_images, settings.image_size),
    )


def probe(
    config: Mapping[str, Any],
    architecture: Architecture,
    numerics: Numerics,
    variables: Mapping[str, Any],
    *,
    frozen: bool,
    seed: int,
    data: Data,
) -> dict[str, float]:
    """Trains a detector on top of a pre-trained network and tests it.

    Runs on the default device. Networks of the same sizes share one compilation.

    Args:
      config: `probe` and `augment.mean`, `augment.std` are read.
      architecture, numerics: of the pre-trained network.
      variables: {'params': {'backbone': ..., 'fpn': ...}, 'batch_stats': the same}. Without
        'fpn' (a method that trains the backbone alone, or a C4 network) a random FPN is trained.
      frozen: leave what was pre-trained as it is, running statistics included; False trains
        everything at one learning rate.
      seed: of the new parts' parameters and of the order of images.
      data: from `load`.

    Returns:
      As `average_precision` says: 'ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large'.

    Raises:
      UserError: settings that do not fit together; no pycocotools (before any training).
    """
    check_installed()
    train, test = data
    settings = settings_from(ProbeSettings, config["probe"])
    given = tuple(part for part in PARTS if part in variables["params"])
    detector = Detector(
        settings=settings,
        # What is regularized in pre-training by leaving branches out is plainly computed here.
        architecture=dataclasses.replace(architecture, drop_path=0.0),
        numerics=dataclasses.replace(numerics, axis_name=None),
        mean=tuple(config["augment"]["mean"]),
        std=tuple(config["augment"]["std"]),
        classes=len(train.class_names),
        trained=tuple(part for part in PARTS if not frozen or part not in given),
    )
    by_part = {
        part: {"params": variables["params"][part], "batch_stats": _statistics(variables, part)}
        for part in given
    }
    fitted = fit(detector, by_part, train, seed)
    found = evaluate(detector, fitted, test)
    return average_precision(
        test.boxes, test.labels, found, len(test.class_names), settings.area_bounds
    )


def _statistics(variables: Mapping[str, Any], part: str) -> Any:
    """Running statistics of a part; a network without batch normalization has none."""
    return variables.get("batch_stats", {}).get(part, {})


def fit(
    detector: Detector, variables: Mapping[str, Any], data: BoxedImages, seed: int
) -> dict[str, Any]:
    """Trains the trained parts on images and mirror images.

    Args:
      variables: of the pre-trained parts, {part: {'params', 'batch_stats'}}; not changed.
      data: labeled images.
      seed: see `probe`.

    Returns:
      Variables of all parts, of frozen ones those given.
    """
    s, functions = detector.settings, compiled(detector)
    data = with_mirrored(data)
    # Copies: the training step takes over the memory of what it is given.
    variables = jax.tree.map(lambda x: jnp.array(np.asarray(x)), dict(variables))
    missing = tuple(part for part in PARTS if part not in variables)
    variables |= functions.initial(key_for(seed, 0, 0, Purpose.PROBE), missing)
    frozen = {part: v for part, v in variables.items() if part not in detector.trained}
    inputs = _inputs(functions, frozen, data, s.eval_batch_size)
    targets = functions.targets(data.boxes, data.labels)
    trained = {part: variables[part] for part in detector.trained}
    memory = functions.optimizer.init({part: v["params"] for part, v in trained.items()})
    rng = np.random.default_rng((seed, Purpose.PROBE))
    for step, rows in enumerate(_batches(rng, len(data.images) // 2, s.batch_size, s.steps)):
        trained, memory, _ = functions.step(
            trained, memory, inputs, targets, rows, np.float32(learning_rate(s, step))
        )
    return frozen | trained


def evaluate(detector: Detector, variables: Mapping[str, Any], data: BoxedImages) -> Detections:
    """Detections [n, D] of all images, as numpy, with running statistics."""
    functions, chunk = compiled(detector), detector.settings.eval_batch_size
    frozen = {part: v for part, v in variables.items() if part not in detector.trained}
    trained = {part: variables[part] for part in detector.trained}
    inputs = _inputs(functions, frozen, data, chunk)
    found = [
        functions.predict(trained, inputs, data.extents, rows)
        for rows in _chunks(len(data.images), chunk)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(data.images)], *found)


def learning_rate(settings: ProbeSettings, step: int) -> float:
    """Linear warm-up to `base_lr`, then half a cosine to 0 at `steps`."""
    s = settings
    if step < s.warmup_steps:
        return s.base_lr * (step + 1) / (s.warmup_steps + 1)
    done = (step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
    return s.base_lr * 0.5 * (1 + float(np.cos(np.pi * done)))


def _batches(rng: np.random.Generator, images: int, batch_size: int, steps: int):
    """Rows int32 [batch_size] of each step: whole passes in random order, half of them mirrored."""
    passes = -(-steps * batch_size // images)
    order = np.concatenate([rng.permutation(images) for _ in range(passes)])
    mirrored = rng.integers(0, 2, order.size)  # the mirror image of i is row i + images
    rows = (order + images * mirrored).astype(np.int32)
    return rows[: steps * batch_size].reshape(steps, batch_size)


def _chunks(images: int, size: int) -> np.ndarray:
    """Rows int32 [chunks, size] that visit every image once; the last image fills the end."""
    rows = np.arange(-(-images // size) * size, dtype=np.int32)
    return np.minimum(rows, images - 1).reshape(-1, size)


def _inputs(functions: "Functions", frozen: Mapping, data: BoxedImages, chunk: int) -> Any:
    """What the first trained part reads of all images, on the device."""
    images = (jnp.asarray(data.images), jnp.asarray(data.extents))
    if not frozen:
        return images
    rows = _chunks(len(data.images), chunk)
    outputs = [functions.embed(frozen, images, r) for r in rows]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[: len(data.images)], *outputs)


@functools.lru_cache(maxsize=8)
def compiled(detector: Detector) -> "Functions":
    """The jitted functions of a detector; equal detectors share them."""
    return Functions(detector)


class Functions:
    """What is compiled once per detector and shape; parameters and learning rate are arguments.

    Attributes:
      optimizer: AdamW before its learning rate.
      initial: (key, parts) -> random variables of these parts.
      embed: (frozen variables, images, rows) -> inputs of these rows.
      targets: (boxes [n, N, 4], labels [n, N]) -> `fcos.Outputs` [n, L, ...].
      step: (trained variables, optimizer state, inputs, targets, rows, lr) -> the first two after
        one step, and the loss; takes over the memory of the first two.
      predict: (trained variables, inputs, extents, rows) -> `Detections` of these rows.
    """

    def __init__(self, detector: Detector):
        self._detector = detector
        self.optimizer = optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(
                detector.settings.weight_decay,
                mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
            ),
        )
        self.initial = jax.jit(detector.initial, static_argnames="parts")
        self.embed = jax.jit(self._embed)
        self.targets = jax.jit(detector.targets)
        self.step = jax.jit(self._step, donate_argnums=(0, 1))
        self.predict = jax.jit(self._predict)

    def _embed(self, frozen: Any, images: Any, rows: Array) -> Any:
        parts = tuple(part for part in PARTS if part in frozen)
        return self._detector.run(parts, frozen, _take(images, rows), train=False)[0]

    def _step(self, trained, memory, inputs, targets, rows, lr):
        detector, s = self._detector, self._detector.settings
        x, wanted = _take(inputs, rows), _take(targets, rows)

        def loss_of(params):
            variables = {part: v | {"params": params[part]} for part, v in trained.items()}
            outputs, stats = detector.run(detector.trained, variables, x, train=True)
            terms = fcos.losses(outputs, wanted, s.focal_alpha, s.focal_gamma)
            return sum(terms.values()), stats

        params = {part: v["params"] for part, v in trained.items()}
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, memory = self.optimizer.update(grads, memory, params)
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
        trained = {
            part: {"params": params[part], "batch_stats": v["batch_stats"] | stats[part]}
            for part, v in trained.items()
        }
        return trained, memory, loss

    def _predict(self, trained: Any, inputs: Any, extents: Array, rows: Array) -> Detections:
        detector = self._detector
        outputs, _ = detector.run(detector.trained, trained, _take(inputs, rows), train=False)
        return jax.vmap(detector.detect)(outputs, _take(extents, rows))


def _take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], tree)
