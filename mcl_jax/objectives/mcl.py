"""Multi-Level Contrastive Learning (paper section 3; design section 3).

Shapes: b images of this device, V = 2 sides (q, k), S levels, H image side;
m_s sub-images of level s on one side; canvases [V*n, H, H, 3] side-major, level-ordered; labels per
level int32 [V, m_s] local image numbers; online u_s [V, m_s, D]; target v_j [V, B, D] over all
devices in image order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax import losses, montage
from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.encoder import Encoder, predictors
from mcl_jax.models.pyramid import Span, assigned_spans, present
from mcl_jax.objectives.base import Common, Outcome, Variables
from mcl_jax.sharding import AxisName
from mcl_jax.state import TrainState
from mcl_jax.views import copy_paste

Array = jax.Array

SIDES = 2  # q and k: each is online against the other's target (symmetric loss)


@dataclass(frozen=True)
class LossSettings:
    """The keys of `config.loss`.

    Attributes:
      pyramid: 'assigned' computes what the loss reads; 'full' everything, as the authors' code.
      matching: the paper's mode a, b, c or d (section 3.3).
      temperature: tau.
      level_weights: w_s, at least one per level.
      negatives: 'micro_batch', or 'step': of all micro-batches of a step (see accumulation.py).
    """

    pyramid: str
    matching: str
    temperature: float
    level_weights: tuple[float, ...]
    negatives: str


class Inputs(NamedTuple):
    """Both sides' montages of one device."""

    canvases: Array  # [V*n, H, H, 3]
    labels: tuple[Array, ...]  # per level int32 [V, m_s]
    cells: tuple[Array | None, ...] | None = None  # per level int32 [V, canvases]; see Encoder
    drop_path_key: Array | None = None


@dataclass(frozen=True)
class MCL(Common):
    """The method as pure functions over (params, state, inputs)."""

    layout: montage.Layout
    loss_settings: LossSettings

    def __post_init__(self):
        super().__post_init__()
        if self.layout.assembly != "montage":
            self._check_other_assembly()

    def _check_other_assembly(self):
        """What paper Table 8's baselines can be combined with."""
        targets = set(np.flatnonzero(self.matching.any(0)).tolist())
        complete = {0} if self.layout.assembly == "copy_paste" else {1}  # levels with every image
        if targets - complete:
            mode = "a" if complete == {0} else "b"
            raise UserError(
                f"loss.matching {self.loss_settings.matching!r} targets levels {sorted(targets)}, "
                f"but with montage.assembly {self.layout.assembly!r} only level {min(complete)} holds "
                f"every image; use {mode!r}"
            )

    @property
    def full(self) -> bool:
        """Whether every canvas runs through the whole pyramid."""
        return self.loss_settings.pyramid == "full"

    @property
    def negatives_of_step(self) -> bool:
        return self.loss_settings.negatives == "step"

    @property
    def counts(self) -> tuple[int, ...]:
        """Canvases per level of one side on one device (montage and mosaic)."""
        return montage.canvas_counts(self.group_size, self.layout, self.key_groups)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Per level the canvases of one side on which it is read."""
        if self.layout.assembly == "copy_paste":
            return copy_paste.spans(self.images_per_device, self.layout)
        return tuple(assigned_spans(self.counts))

    @property
    def canvases_per_device(self) -> int:
        """Of both sides."""
        return SIDES * max(stop for _, stop in self.spans)

    @property
    def trained_levels(self) -> tuple[int, ...]:
        return present(self.spans)

    @property
    def matching(self) -> np.ndarray:
        """The matching matrix; rows of levels without sub-images are zero."""
        matrix = losses.matching_matrix(self.loss_settings.matching, self.layout.levels)
        present = [start < stop for start, stop in self.spans]
        return matrix * np.array(present, float)[:, None]

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.architecture, self.numerics)

    @property
    def predictors(self):
        return predictors(self.architecture, self.numerics)

    def init(self, key: Array) -> Variables:
        """Parameters of the online network; the pyramid is always initialized in full."""
        encoder_key, predictor_key = jax.random.split(key)
        levels = self.layout.levels
        canvases = jnp.zeros((levels, self.image_size, self.image_size, 3))
        spans = assigned_spans((1,) * levels)
        encoder = self.encoder.init(encoder_key, canvases, spans, sides=1, full=True, train=True)
        embeddings = tuple(
            jnp.zeros((1, 2 * (start < stop), self.architecture.projector_out))
            for start, stop in self.spans
        )
        predictor = self.predictors.init(predictor_key, embeddings, train=True)
        collections = {
            name: {"encoder": encoder[name], "predictor": predictor[name]}
            for name in ("params", "batch_stats")
        }
        return Variables(**collections, memory={})

    def inputs(self, seed: int, step: Array, batch: dict[str, Array], shard: Array) -> Inputs:
        """Eight augmented views per image -> both sides' montages.

        Args:
          seed: of the run.
          step: int32 scalar.
          batch: {'image': uint8 [b, C, C, 3], 'extent': int32 [b, 2], ...} of this shard.
          shard: int32, see `Objective.inputs`.
        """
        views = self.augmented(seed, step, batch=batch, shard=shard, strides=self.layout.strides)
        keys = self.group_keys(seed, step, shard=shard, purpose=Purpose.MONTAGE)
        sides = [jax.vmap(jax.random.fold_in, (0, None))(keys, side) for side in range(SIDES)]
        if self.layout.assembly == "copy_paste":  # of the whole shard, one group
            plans = [
                copy_paste.draw(side[0], self.images_per_device, self.layout) for side in sides
            ]
        else:
            plans = [montage.draw_orders(side, self.group_size, self.counts) for side in sides]
        inputs = self.assemble(views, plans)
        if self.architecture.drop_path > 0:
            key = key_for(seed, step, key_group=shard, purpose=Purpose.DROP_PATH)
            inputs = inputs._replace(drop_path_key=key)
        return inputs

    def assemble(self, views: Sequence[Array], plans: Sequence[Any]) -> Inputs:
        """Canvases of given views.

        Args:
          views: per level [V, b, h, h, 3], normalized; see `montage.build`.
          plans: per side the orders of `montage.draw_orders` or `copy_paste.Pastes`.
        """
        build = copy_paste.build if self.layout.assembly == "copy_paste" else montage.build
        by_side = zip(*views, strict=True)
        sides = [
            build(levels, plan, self.layout, self.numerics.dtype)
            for levels, plan in zip(by_side, plans, strict=True)
        ]
        canvases = jnp.concatenate([side.canvases for side in sides])

        def stacked(levels):
            return None if levels[0] is None else jnp.stack(levels)

        labels, cells = (
            tuple(map(stacked, zip(*(getattr(side, name) for side in sides), strict=True)))
            for name in ("labels", "cells")
        )
        return Inputs(canvases, labels, cells)

    def pictures(self, inputs: Inputs) -> dict[str, Array]:
        """Rows of a picture of one device's inputs: side q's canvases, level by level."""
        canvases = inputs.canvases.reshape(SIDES, -1, *inputs.canvases.shape[1:])[0]
        if self.layout.assembly == "copy_paste":
            groups = enumerate(self.spans[1:], start=1)
            return {f"level {s} pasted in": canvases[start:stop] for s, (start, stop) in groups}
        return montage.rows(canvases, self.counts)

    def loss(
        self, params: Any, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[Array, Outcome]:
        """The multi-level contrastive loss of this device's montages against all targets."""
        targets, target_stats = self.targets(state, inputs, axis_name)
        predictions, stats = self.predict(params, state, inputs)
        loss, metrics = self.contrast(predictions, targets, self.labels(inputs, axis_name))
        return loss, Outcome(stats, target_stats, memory=state.memory, metrics=metrics)

    def predict(self, params: Any, state: TrainState, inputs: Inputs) -> tuple[list[Array], Any]:
        """The online network's normalized u per level [V, m_s, D], and its running statistics."""
        variables = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        rngs = {} if inputs.drop_path_key is None else {"drop_path": inputs.drop_path_key}
        embeddings, encoder_stats = self.encoder.apply(
            variables,
            inputs.canvases,
            self.spans,
            sides=SIDES,
            full=self.full,
            train=True,
            cells=inputs.cells,
            mutable=["batch_stats"],
            rngs=rngs,
        )
        variables = {"params": params["predictor"], "batch_stats": state.batch_stats["predictor"]}
        predictions, predictor_stats = self.predictors.apply(
            variables, embeddings, train=True, mutable=["batch_stats"]
        )
        stats = {
            "encoder": encoder_stats["batch_stats"],
            "predictor": predictor_stats["batch_stats"],
        }
        return [losses.unit_rows(u) for u in predictions], stats

    def labels(self, inputs: Inputs, axis_name: AxisName | None) -> list[Array]:
        """Per level int32 [V, m_s]: the targets' row of every sub-image's image."""
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * self.images_per_device
        return [labels + first for labels in inputs.labels]

    def contrast(
        self, predictions: Sequence[Array], targets: Sequence[Array | None], labels: Sequence[Array]
    ) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics) of `predict`'s, `targets`' and `labels`' results."""
        return losses.multi_level(
            predictions,
            targets,
            labels,
            matching=self.matching,
            weights=self.loss_settings.level_weights,
            pair_loss=partial(losses.scaled_info_nce, temperature=self.loss_settings.temperature),
        )

    def targets(
        self, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[list[Array | None], Any]:
        """Normalized target features per level [V, B, D] in image order, and running statistics.

        'assigned' runs the target network on the leading levels that the matching matrix reads
        (level 0 alone in mode a); 'full' on every canvas.
        """
        levels = losses.target_levels(self.matching)
        spans = self.spans if self.full else self.spans[:levels]
        canvases = inputs.canvases.reshape(SIDES, -1, *inputs.canvases.shape[1:])
        canvases = canvases[:, : max(stop for _, stop in spans)]
        canvases = canvases.reshape(-1, *inputs.canvases.shape[1:])
        variables = {"params": state.target_params, "batch_stats": state.target_batch_stats}
        embeddings, stats = self.encoder.apply(
            variables,
            canvases,
            spans,
            sides=SIDES,
            full=self.full,
            train=True,
            mutable=["batch_stats"],
        )
        targets = []
        for v, labels in zip(embeddings[:levels], inputs.labels, strict=False):
            if labels.shape[1] == 0:
                targets.append(None)
                continue
            first = jax.vmap(montage.first_copies, (0, None))(labels, self.images_per_device)
            v = losses.unit_rows(jax.vmap(lambda rows, index: rows[index])(v, first))
            if axis_name is not None:
                v = jax.lax.all_gather(v, axis_name, axis=1, tiled=True)
            targets.append(jax.lax.stop_gradient(v))
        return targets, stats["batch_stats"]
