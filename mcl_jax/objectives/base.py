"""The signature that every objective shares, so that one train step serves them all."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.sharding import AxisName
from mcl_jax.state import TrainState
from mcl_jax.views import augment

Array = jax.Array


class Variables(NamedTuple):
    """What an objective starts from."""

    params: Any  # trained; params['encoder'] is what gets exported (and averaged, if at all)
    batch_stats: Any
    memory: Any  # queues and the like; {} if none


class Outcome(NamedTuple):
    """What a loss computes besides its value; equal on all devices but for `metrics`."""

    batch_stats: Any
    target_batch_stats: Any
    memory: Any
    metrics: dict[str, Array]  # scalars of this device's share, to be averaged


class Objective(Protocol):
    """Static description of a method; all numbers that vary live in the arguments.

    Attributes:
      images_per_device: b.
      has_target: whether the state keeps a target network, the EMA of params['encoder'].
      batch_fields: what `inputs` reads of a batch: 'image', 'extent', 'label'.
      encoder: the flax module of params['encoder']; its `stage5(images)` gives pooled res5.
      negatives_of_step: whether micro-batches share their negatives (see accumulation.py); such
        an objective is a `NegativesOfStep`.
      trained_levels: montage levels s whose pyramid map P_{5-s} is trained, with the RoI head on it
        (encoder.region); empty for methods without pyramid.
    """

    images_per_device: int
    has_target: bool
    batch_fields: tuple[str, ...]
    encoder: Any
    negatives_of_step: bool
    trained_levels: tuple[int, ...]

    def init(self, key: Array) -> Variables:
        """Fresh parameters, running statistics and memory."""

    def inputs(self, seed: int, step: Array, batch: dict[str, Array], shard: Array) -> Any:
        """Turns a shard's raw images into network inputs; everything random happens here.

        A shard is what one device holds of one micro-batch; shards are numbered along the global
        batch, device by device.
        """

    def pictures(self, inputs: Any) -> dict[str, Array]:
        """Titled rows [n, h, w, 3] of a picture that shows what the network is given."""

    def loss(
        self, params: Any, state: TrainState, inputs: Any, axis_name: AxisName | None
    ) -> tuple[Array, Outcome]:
        """Mean loss over this device's share. Only `params` receives gradients."""


class NegativesOfStep(Objective, Protocol):
    """What `negatives_of_step` demands: the loss in pieces, so that micro-batches can be joined.

    u are online predictions, v targets, each per level [V, rows, D]; `loss` is `contrast` of what
    the other three give.
    """

    def predict(self, params: Any, state: TrainState, inputs: Any) -> tuple[Any, Any]:
        """(u, running statistics). Only `params` receives gradients."""

    def targets(
        self, state: TrainState, inputs: Any, axis_name: AxisName | None
    ) -> tuple[Any, Any]:
        """(v of all devices in image order, running statistics)."""

    def labels(self, inputs: Any, axis_name: AxisName | None) -> Any:
        """Per level int32 [V, rows]: the row of v that belongs to each row of u."""

    def contrast(self, predictions: Any, targets: Any, labels: Any) -> tuple[Array, dict]:
        """(loss, metrics) of any number of rows."""


@dataclass(frozen=True)
class Common:
    """What every objective of this package is made from.

    Attributes:
      architecture, numerics: of the network.
      views: the augmentation's numbers.
      image_size: H in px.
      images_per_device: b, of a micro-batch.
      group_size: of a key group, images that share keys and montages; divides b.

    Raises:
      UserError: unless P5's stride divides H, and group_size b.
    """

    architecture: Architecture
    numerics: Numerics
    views: augment.AugmentSettings
    image_size: int
    images_per_device: int
    group_size: int

    has_target = True
    negatives_of_step = False
    batch_fields = ("image", "extent")
    trained_levels: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        check_image_size(self.image_size)
        if self.group_size < 1 or self.images_per_device % self.group_size:
            raise UserError(
                f"data.group_size {self.group_size} does not divide the {self.images_per_device} "
                f"images per device and micro-batch"
            )

    @property
    def key_groups(self) -> int:
        """How many key groups a shard has."""
        return self.images_per_device // self.group_size

    def group_keys(self, seed: Array, step: Array, shard: Array, purpose: Purpose) -> Array:
        """One key per key group of this shard; it does not depend on which device holds the group."""
        numbers = shard * self.key_groups + jnp.arange(self.key_groups)
        return jax.vmap(lambda group: key_for(seed, step, key_group=group, purpose=purpose))(
            numbers
        )

    def augmented(
        self,
        seed: Array,
        step: Array,
        batch: dict[str, Array],
        shard: Array,
        strides: tuple[int, ...] = (1,),
    ) -> tuple[Array, ...]:
        """Per level [V, b, h, h, 3], h = H / stride: views of this shard's images at this step.

        Args:
          seed: of the run.
          step: int32 scalar.
          batch: {'image': uint8 [b, C, C, 3], 'extent': int32 [b, 2], ...}.
          shard: int32, see `Objective.inputs`.
          strides: per level, see `augment.views`.
        """
        keys = self.group_keys(seed, step, shard=shard, purpose=Purpose.AUGMENT)
        return self.make_views(
            keys, batch, settings=self.views, image_size=self.image_size, strides=strides
        )

    def make_views(
        self,
        keys: Array,
        batch: dict[str, Array],
        settings: augment.AugmentSettings,
        image_size: int,
        strides: tuple[int, ...] = (1,),
    ) -> tuple[Array, ...]:
        """`augment.views` of all images, each key group with its own key."""
        make = partial(augment.views, settings=settings, image_size=image_size, strides=strides)
        fields = (self.by_key_group(batch[name]) for name in ("image", "extent"))
        levels = jax.vmap(make, out_axes=1)(keys, *fields)
        return tuple(views.reshape(len(views), -1, *views.shape[3:]) for views in levels)

    def by_key_group(self, rows: Array) -> Array:
        """[b, ...] -> [key groups, group_size, ...]."""
        return rows.reshape(self.key_groups, self.group_size, *rows.shape[1:])


def check_image_size(image_size: int) -> None:
    """UserError unless P5's stride divides the side of the views."""
    if image_size % 32:
        raise UserError(
            f"data.image_size {image_size} is not a multiple of 32 (P5's stride); "
            f"{max(32, round(image_size / 32) * 32)} would do"
        )
