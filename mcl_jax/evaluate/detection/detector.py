"""The detector of the probe: backbone -> FPN -> FCOS head, some of the parts frozen.

Shapes: n images, H their side in px, N boxes of an image (padded), L locations of all levels;
boxes are float [4] (ymin, xmin, ymax, xmax) in px.

Parts that stay frozen come first in the chain and run once for all images; training starts from
what they put out. Frozen parts normalize by their running statistics, trained ones by the batch's
(a random network has no others), and are then tested with the running ones.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mcl_jax.evaluate.detection import augmentation, fcos
from mcl_jax.evaluate.detection.augmentation import Placement
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.layers import Context, Numerics
from mcl_jax.models.pyramid import COARSEST, FPN, full_spans

Array = jax.Array
PARTS = ("backbone", "fpn", "head")


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """The keys of `config.probe`; lengths in px of the probe's images.

    Attributes:
      image_size: H, a multiple of 32; images are fitted to it at the top left and never enlarged.
      train_images, eval_images: the first so many of the training and of the test set; 0: all.
      steps, batch_size: of training; eval_batch_size: of everything without gradient.
      scale_jitter: lowest and highest factor of a training image's size; (1, 1): images are mirrored
        and nothing else.
      min_visible: share of a box's area that has to stay on the canvas for the box to stay.
      cache_gb: 10^9 bytes of memory for decoded images, and as much for what frozen parts put out.
      checkpoint_steps: steps between two saved states of a training.
      base_lr: AdamW's peak learning rate, after `warmup_steps` of linear warm-up; cosine to 0.
      weight_decay: of kernels; norms, biases and scales have none.
      head_channels, head_convs, head_groups: of each of the head's two towers.
      prior: probability of an object that every location starts from.
      levels: pyramid levels with a head, a run of P2..P5 that ends at P5.
      level_bounds: largest distances (location to side) that go from one level to the next.
      center_radius: strides around a box's center within which locations are positive.
      focal_alpha, focal_gamma: of the focal loss.
      score_threshold, candidates, nms_iou, max_detections: see `fcos.detect`.
      area_bounds: sides of the squares between small, medium and large boxes.
    """

    image_size: int
    train_images: int
    eval_images: int
    steps: int
    batch_size: int
    eval_batch_size: int
    scale_jitter: tuple[float, float]
    min_visible: float
    cache_gb: float
    checkpoint_steps: int
    base_lr: float
    warmup_steps: int
    weight_decay: float
    head_channels: int
    head_convs: int
    head_groups: int
    prior: float
    levels: tuple[str, ...]
    level_bounds: tuple[float, ...]
    center_radius: float
    focal_alpha: float
    focal_gamma: float
    score_threshold: float
    candidates: int
    nms_iou: float
    max_detections: int
    area_bounds: tuple[float, float]

    @property
    def jitters(self) -> bool:
        """Whether training images change their size."""
        return self.scale_jitter != (1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Detector:
    """The three parts and what can be done with them; equal detectors share compiled functions.

    Variables are {part: {'params': ..., 'batch_stats': ...}}. Inputs of a part are a pytree with n
    rows: normalized images, res2..res5 or the pyramid.

    Attributes:
      mean, std: of the normalization, per RGB channel on the [0, 1] scale.
      classes: C.
      trained: the end of PARTS that is trained.
    """

    settings: ProbeSettings
    architecture: Architecture
    numerics: Numerics
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    trained: tuple[str, ...]

    @property
    def grid(self) -> fcos.Grid:
        s = self.settings
        return fcos.make_grid(s.image_size, s.levels, s.level_bounds)

    def module(self, part: str) -> nn.Module:
        """The flax module of a part."""
        s, a = self.settings, self.architecture
        if part == "backbone":
            return make_backbone(a, self.numerics)
        if part == "fpn":
            return FPN(a.fpn_channels, self.numerics)
        return fcos.Head(
            levels=s.levels,
            classes=self.classes,
            channels=s.head_channels,
            convs=s.head_convs,
            groups=s.head_groups,
            prior=s.prior,
            dtype=self.numerics.dtype,
        )

    def arguments(self, part: str, x: Any, *, train: bool) -> dict[str, Any]:
        """What a part is called with after its input `x`."""
        rows = jax.tree.leaves(x)[0].shape[0]
        if part == "backbone":
            return {"context": Context((rows,), train=train)}
        if part == "fpn":
            spans = full_spans(rows)[: COARSEST + 1 - int(self.settings.levels[0][1:])]
            return {"spans": spans, "sides": 1, "train": train}
        return {}

    def standardize(self, images: Array, extents: Array) -> Array:
        """uint8 -> float32, zero (the mean) where no image is."""
        side = jnp.arange(images.shape[1])
        rows, columns = side < extents[:, :1], side < extents[:, 1:]
        return self._standardized(images, rows[:, :, None] & columns[:, None, :])

    def _standardized(self, images: Array, inside: Array) -> Array:
        x = (images / jnp.float32(255) - jnp.array(self.mean)) / jnp.array(self.std)
        return x * inside[..., None]

    def view(
        self, images: Array, extents: Array, mirrored: Array, placement: Placement | None
    ) -> Array:
        """What the backbone reads of images uint8 [n, H, H, 3]: float32 of the same shape.

        Args:
          extents: int32 [n, 2].
          mirrored: bool [n].
          placement: of `augmentation.draw_placement`; None: images stay as they are.
        """
        images = augmentation.mirror(images, extents, mirrored)
        if placement is None:
            return self.standardize(images, extents)
        return self._standardized(*augmentation.place(images, extents, placement))

    def run(
        self, parts: tuple[str, ...], variables: Any, x: Any, *, train: bool
    ) -> tuple[Any, Any]:
        """Chains `parts`; returns their output and {part: new batch_stats}."""
        stats = {}
        for part in parts:
            arguments = self.arguments(part, x, train=train)
            x, new = self.module(part).apply(
                variables[part], x, **arguments, mutable=["batch_stats"]
            )
            stats[part] = new.get("batch_stats", {})
        return x, stats

    def initial(self, key: Array, parts: tuple[str, ...]) -> dict[str, Any]:
        """Random variables of `parts`."""
        side = self.settings.image_size
        x = jnp.zeros((1, side, side, 3), jnp.float32)
        variables = {}
        for i, part in enumerate(PARTS):
            module, arguments = self.module(part), self.arguments(part, x, train=False)
            x, collections = module.init_with_output(jax.random.fold_in(key, i), x, **arguments)
            if part in parts:
                statistics = collections.get("batch_stats", {})
                variables[part] = {"params": collections["params"], "batch_stats": statistics}
        return variables

    def targets(self, boxes: Array, labels: Array) -> fcos.Outputs:
        """boxes [n, N, 4] and labels [n, N] -> what each location has to predict, [n, L, ...]."""
        radius = self.settings.center_radius
        return jax.vmap(lambda b, k: fcos.assign(b, k, self.grid, radius))(boxes, labels)

    def detect(self, outputs: fcos.Outputs, extent: Array) -> Detections:
        """Detections of one image of this extent."""
        s = self.settings
        return fcos.detect(
            outputs,
            self.grid.points,
            extent,
            score_threshold=s.score_threshold,
            candidates=s.candidates,
            nms_iou=s.nms_iou,
            max_detections=s.max_detections,
        )
