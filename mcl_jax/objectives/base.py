"""The signature that every objective shares, so that one train step serves them all."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from mcl_jax import augment
from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.state import TrainState

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
      trained_levels: montage levels s whose pyramid map P_{5-s} is trained, with the RoI head on it
        (encoder.region); empty for methods without pyramid.
    """

    images_per_device: int
    has_target: bool
    batch_fields: tuple[str, ...]
    encoder: Any
    trained_levels: tuple[int, ...]

    def init(self, key: Array) -> Variables:
        """Fresh parameters, running statistics and memory."""

    def inputs(self, seed: int, step: Array, batch: dict[str, Array], device: Array) -> Any:
        """Turns the device's raw images into network inputs; everything random happens here."""

    def pictures(self, inputs: Any) -> dict[str, Array]:
        """Titled rows [n, h, w, 3] of a picture that shows what the network is given."""

    def loss(
        self, params: Any, state: TrainState, inputs: Any, axis_name: str | None
    ) -> tuple[Array, Outcome]:
        """Mean loss over this device's share. Only `params` receives gradients."""


@dataclass(frozen=True)
class Common:
    """What every objective of this package is made from.

    Attributes:
      architecture, numerics: of the network.
      views: the augmentation's numbers.
      image_size: H in px.
      images_per_device: b.

    Raises:
      UserError: unless P5's stride divides H.
    """

    architecture: Architecture
    numerics: Numerics
    views: augment.Settings
    image_size: int
    images_per_device: int

    has_target = True
    batch_fields = ("image", "extent")
    trained_levels: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self):
        check_image_size(self.image_size)

    def augmented(
        self, seed: Array, step: Array, batch: dict[str, Array], device: Array, levels: int
    ) -> Array:
        """[V, levels, b, H, H, 3]: independent views of this device's images at this step.

        Args:
          seed: of the run.
          step: int32 scalar.
          batch: {'image': uint8 [b, C, C, 3], 'extent': int32 [b, 2], ...}.
          device: int32 index along the data axis.
          levels: views per side.
        """
        return augment.views(
            key_for(seed, step, device, Purpose.AUGMENT),
            batch["image"],
            batch["extent"],
            self.views,
            image_size=self.image_size,
            levels=levels,
        )


def check_image_size(image_size: int) -> None:
    """UserError unless P5's stride divides the side of the views."""
    if image_size % 32:
        raise UserError(
            f"data.image_size {image_size} is not a multiple of 32 (P5's stride); "
            f"{max(32, round(image_size / 32) * 32)} would do"
        )
