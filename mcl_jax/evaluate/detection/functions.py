"""What is compiled of a detector: embedding, targets, training step, prediction.

Shapes: B images of a batch, H their side in px, N boxes of an image (padded), L locations of all
levels, D detections of an image. Batches are split over all devices of a mesh, everything else is
replicated; a trained part's batch statistics are those of the whole batch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from mcl_jax import sharding
from mcl_jax.evaluate.detection import augmentation, fcos
from mcl_jax.evaluate.detection.augmentation import Placement
from mcl_jax.evaluate.detection.boxed_images import Truth
from mcl_jax.evaluate.detection.detector import PARTS, Detector
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.keys import Purpose, key_for

Array = jax.Array
# Of a batch: {'images', 'extents', 'mirrored', 'placement'} as `Detector.view` takes them, or
# {'features': what the frozen parts put out}.
Inputs = Mapping[str, Any]


@functools.lru_cache(maxsize=8)
def compiled(detector: Detector, mesh: Mesh) -> "Functions":
    """The jitted functions of a detector; equal detectors share them."""
    return Functions(detector, mesh)


class Functions:
    """What is compiled once per detector and shape; parameters and learning rate are arguments.

    Attributes:
      optimizer: AdamW before its learning rate.
      initial: (key, parts) -> random variables of these parts.
      placement: (seed, step, extents) -> `Placement` of a step's images.
      embed: (frozen variables, inputs) -> what the frozen parts put out.
      targets: (truth, extents, mirrored, placement) -> `fcos.Outputs` [B, L, ...].
      step: (trained variables, optimizer state, frozen variables, inputs, targets, lr) -> the first
        two after one step, and the loss; takes over the memory of the first two.
      predict: (trained variables, frozen variables, images, extents) -> `Detections` [B, D].
    """

    def __init__(self, detector: Detector, mesh: Mesh):
        self._detector = detector
        self.mesh = mesh
        self.optimizer = optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(
                detector.settings.weight_decay,
                mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
            ),
        )
        self.initial = jax.jit(detector.initial, static_argnames="parts")
        self.placement = jax.jit(self._placement)
        self.embed = jax.jit(self._embed)
        self.targets = jax.jit(self._targets)
        state, batch = sharding.STATE_SPEC, sharding.BATCH_SPEC
        # Told, for what comes out goes in again: other shardings would compile a second time.
        self.step = jax.jit(
            self._step, donate_argnums=(0, 1), out_shardings=NamedSharding(mesh, state)
        )
        # Devices do not exchange anything here, which only this form promises.
        predict = jax.shard_map(
            self._predict,
            mesh=mesh,
            in_specs=(state, state, batch, batch),
            out_specs=batch,
            check_vma=False,
        )
        self.predict = jax.jit(predict)

    def replicate(self, tree: Any) -> Any:
        """Copies of arrays on all devices."""
        copies = jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
        return jax.device_put(copies, NamedSharding(self.mesh, sharding.STATE_SPEC))

    def split(self, tree: Any) -> Any:
        """Arrays with one row per image, on the devices that hold the images."""
        return jax.device_put(tree, NamedSharding(self.mesh, sharding.BATCH_SPEC))

    def _placement(self, seed: Array, step: Array, extents: Array) -> Placement:
        s = self._detector.settings
        key = key_for(seed, step, 0, Purpose.PROBE_AUGMENT)
        return augmentation.draw_placement(
            key, extents, image_size=s.image_size, scales=s.scale_jitter
        )

    def _embed(self, frozen: Any, inputs: Inputs) -> Any:
        if "features" in inputs:
            return inputs["features"]
        parts = tuple(part for part in PARTS if part in frozen)
        x = self._detector.view(**inputs)
        return self._detector.run(parts, frozen, x, train=False)[0]

    def _targets(
        self, truth: Truth, extents: Array, mirrored: Array, placement: Placement | None
    ) -> fcos.Outputs:
        s = self._detector.settings
        labels = jnp.where(truth.ignored, -1, truth.labels)
        boxes = augmentation.mirror_boxes(truth.boxes, extents, mirrored)
        if placement is not None:
            boxes, labels = augmentation.place_boxes(
                boxes, labels, placement, image_size=s.image_size, min_visible=s.min_visible
            )
        return self._detector.targets(boxes, labels)

    def _step(self, trained, memory, frozen, inputs, targets, lr):
        detector, s = self._detector, self._detector.settings
        x = self._embed(frozen, inputs)

        def loss_of(params):
            variables = {part: v | {"params": params[part]} for part, v in trained.items()}
            outputs, stats = detector.run(detector.trained, variables, x, train=True)
            terms = fcos.losses(outputs, targets, alpha=s.focal_alpha, gamma=s.focal_gamma)
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

    def _predict(self, trained: Any, frozen: Any, images: Array, extents: Array) -> Detections:
        detector = self._detector
        mirrored = jnp.zeros(len(images), bool)
        inputs = {"images": images, "extents": extents, "mirrored": mirrored, "placement": None}
        x = self._embed(frozen, inputs)
        outputs, _ = detector.run(detector.trained, trained, x, train=False)
        return jax.vmap(detector.detect)(outputs, extents)
