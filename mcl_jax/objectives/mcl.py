"""Multi-Level Contrastive Learning (paper section 3; design section 3).

Shapes: b images of this device, V = 2 sides (q, k), S levels, H image side;
canvases [V*n, H, H, 3] side-major, level-ordered; labels per level int32 [V, n_s*4^s] local image
numbers; online u_s [V, n_s*4^s, D]; target v_j [V, B, D] over all devices in image order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax import augment, losses, montage
from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.encoder import Architecture, Encoder, predictors
from mcl_jax.models.layers import Numerics
from mcl_jax.objectives.base import Outcome, Variables
from mcl_jax.state import TrainState

Array = jax.Array

SIDES = 2  # q and k: each is online against the other's target (symmetric loss)
PYRAMIDS = ("assigned", "full")


@dataclass(frozen=True)
class LossSettings:
    """The keys of `config.loss`.

    Attributes:
      pyramid: 'assigned' computes what the loss reads; 'full' everything, as the authors' code.
      matching: the paper's mode a, b, c or d (section 3.3).
      temperature: tau.
      level_weights: w_s, at least one per level.
    """

    pyramid: str
    matching: str
    temperature: float
    level_weights: tuple[float, ...]


class Inputs(NamedTuple):
    """Both sides' montages of one device."""

    canvases: Array  # [V*n, H, H, 3]
    labels: tuple[Array, ...]  # per level int32 [V, n_s*4^s]


@dataclass(frozen=True)
class MCL:
    """The method as pure functions over (params, state, inputs)."""

    architecture: Architecture
    numerics: Numerics
    layout: montage.Layout
    loss_settings: LossSettings
    views: augment.Settings
    image_size: int
    images_per_device: int

    def __post_init__(self):
        if self.image_size % 32:
            raise UserError(
                f"data.image_size {self.image_size} is not a multiple of 32 (P5's stride); "
                f"{max(32, round(self.image_size / 32) * 32)} would do"
            )
        if self.loss_settings.pyramid not in PYRAMIDS:
            raise UserError(
                f"loss.pyramid {self.loss_settings.pyramid!r} is not one of {', '.join(PYRAMIDS)}"
            )
        weights = self.loss_settings.level_weights
        if len(weights) < self.layout.levels:
            raise UserError(
                f"loss.level_weights {weights} has {len(weights)} entries, "
                f"montage.levels is {self.layout.levels}"
            )
        self.counts, self.matching  # noqa: B018 (both validate)

    @property
    def counts(self) -> tuple[int, ...]:
        """Canvases per level of one side on one device."""
        return montage.canvas_counts(self.images_per_device, self.layout)

    @property
    def matching(self):
        return losses.matching_matrix(self.loss_settings.matching, self.layout.levels)

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.architecture, self.numerics)

    @property
    def predictors(self):
        return predictors(self.architecture, self.numerics)

    def init(self, key: Array) -> Variables:
        """Parameters of the online network; the pyramid is always initialised in full."""
        encoder_key, predictor_key = jax.random.split(key)
        levels = self.layout.levels
        canvases = jnp.zeros((levels, self.image_size, self.image_size, 3))
        encoder = self.encoder.init(encoder_key, canvases, (1,) * levels, 1, True, True)
        embeddings = tuple(
            jnp.zeros((1, 2, self.architecture.projector_out)) for _ in range(levels)
        )
        predictor = self.predictors.init(predictor_key, embeddings, True)
        collections = {
            name: {"encoder": encoder[name], "predictor": predictor[name]}
            for name in ("params", "batch_stats")
        }
        return Variables(**collections, memory={})

    def inputs(self, seed: int, step: Array, batch: dict[str, Array], device: Array) -> Inputs:
        """Eight augmented views per image -> both sides' montages.

        Args:
          seed: of the run.
          step: int32 scalar.
          batch: {'image': uint8 [b, C, C, 3], 'extent': int32 [b, 2], ...} of this device.
          device: int32 index along the data axis.
        """
        views = augment.views(
            key_for(seed, step, device, Purpose.AUGMENT),
            batch["image"],
            batch["extent"],
            self.views,
            image_size=self.image_size,
            levels=self.layout.levels,
        )
        key = key_for(seed, step, device, Purpose.MONTAGE)
        orders = [
            montage.draw_orders(jax.random.fold_in(key, side), views.shape[2], self.counts)
            for side in range(SIDES)
        ]
        return self.assemble(views, orders)

    def assemble(self, views: Array, orders: Sequence[Sequence[Array]]) -> Inputs:
        """Montages of given views [V, S, b, H, H, 3] in given orders (per side, per level)."""
        sides = [
            montage.build(v, order, self.layout) for v, order in zip(views, orders, strict=True)
        ]
        canvases = jnp.concatenate([side.canvases for side in sides])
        labels = zip(*(side.labels for side in sides), strict=True)
        return Inputs(canvases, tuple(jnp.stack(level) for level in labels))

    def loss(
        self, params: Any, state: TrainState, inputs: Inputs, axis_name: str | None
    ) -> tuple[Array, Outcome]:
        """The multi-level contrastive loss of this device's montages against all targets."""
        encoder = self.encoder
        full = self.loss_settings.pyramid == "full"
        targets, target_stats = self._targets(state, inputs, axis_name, full)

        variables = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        embeddings, encoder_stats = encoder.apply(
            variables, inputs.canvases, self.counts, SIDES, full, True, mutable=["batch_stats"]
        )
        variables = {"params": params["predictor"], "batch_stats": state.batch_stats["predictor"]}
        predictions, predictor_stats = self.predictors.apply(
            variables, embeddings, True, mutable=["batch_stats"]
        )
        offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * self.images_per_device
        loss, metrics = losses.multi_level(
            [losses.normalize(u) for u in predictions],
            targets,
            [labels + offset for labels in inputs.labels],
            matching=self.matching,
            weights=self.loss_settings.level_weights,
            pair_loss=partial(losses.info_nce, temperature=self.loss_settings.temperature),
        )
        stats = {
            "encoder": encoder_stats["batch_stats"],
            "predictor": predictor_stats["batch_stats"],
        }
        return loss, Outcome(stats, target_stats, state.memory, metrics)

    def _targets(
        self, state: TrainState, inputs: Inputs, axis_name: str | None, full: bool
    ) -> tuple[list[Array], Any]:
        """Normalised target features per level [V, B, D] in image order, and running statistics.

        'assigned' runs the target network on the leading levels that the matching matrix reads
        (level 0 alone in mode a); 'full' on every canvas.
        """
        levels = losses.target_levels(self.matching)
        counts = self.counts if full else self.counts[:levels]
        canvases = inputs.canvases.reshape(SIDES, -1, *inputs.canvases.shape[1:])
        canvases = canvases[:, : sum(counts)].reshape(-1, *inputs.canvases.shape[1:])
        variables = {"params": state.target_params, "batch_stats": state.target_batch_stats}
        embeddings, stats = self.encoder.apply(
            variables, canvases, counts, SIDES, full, True, mutable=["batch_stats"]
        )
        targets = []
        for v, labels in zip(embeddings[:levels], inputs.labels, strict=False):
            first = jax.vmap(montage.first_copies, (0, None))(labels, self.images_per_device)
            v = losses.normalize(jax.vmap(lambda rows, at: rows[at])(v, first))
            if axis_name is not None:
                v = jax.lax.all_gather(v, axis_name, axis=1, tiled=True)
            targets.append(jax.lax.stop_gradient(v))
        return targets, stats["batch_stats"]
