"""Supervised pre-training: multi-level (paper appendix A.1, Figure 4) and the vanilla baseline.

Shapes: b images of this device, S levels, m_s sub-images of level s, H image side, C classes.

Multi-level: S augmented views of an image, assembled as in MCL; the labels travel with the
sub-images; one linear classifier, shared by all levels as a detector's is, reads the pooled RoI
features; loss = sum_s w_s mean CE_s. The paper fixes neither the sharing nor the weights: w_s are
MCL's (loss.level_weights). Vanilla: one view, pooled res5, the same loss.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax import montage
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.encoder import Encoder
from mcl_jax.models.layers import Linear
from mcl_jax.models.pyramid import Span, assigned_spans, present
from mcl_jax.objectives.base import Common, Outcome, Variables
from mcl_jax.sharding import AxisName
from mcl_jax.state import TrainState

Array = jax.Array

classifier_init = jax.nn.initializers.normal(0.01)


@dataclass(frozen=True)
class SupervisedSettings:
    """The keys of `config.supervised`, and the level weights of `config.loss`."""

    classes: int
    pooling: str
    label_smoothing: float
    level_weights: tuple[float, ...]


class Inputs(NamedTuple):
    canvases: Array  # [n, H, H, 3]
    classes: tuple[Array, ...]  # per level int32 [m_s]
    drop_path_key: Array | None


def cross_entropy(logits: Array, classes: Array, smoothing: float) -> Array:
    """Mean cross-entropy against (1 - e) one-hot + e / C, as torch's label_smoothing.

    Args:
      logits: [m, C].
      classes: int [m] in [0, C).
      smoothing: e.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    picked = jnp.take_along_axis(log_p, classes[:, None], axis=1)[:, 0]
    return -((1 - smoothing) * picked + smoothing * log_p.mean(1)).mean()


@dataclass(frozen=True)
class Supervised(Common):
    """Classification of sub-images, or of whole images, as pure functions."""

    layout: montage.Layout
    settings: SupervisedSettings

    has_target = False
    batch_fields = ("image", "extent", "label")

    def __post_init__(self):
        super().__post_init__()
        self.spans  # noqa: B018 (validates)

    @property
    def multi_level(self) -> bool:
        return self.settings.pooling == "montage"

    @property
    def counts(self) -> tuple[int, ...]:
        """Canvases per level; whole images are level 0 alone."""
        if not self.multi_level:
            return (self.images_per_device,)
        return montage.canvas_counts(self.group_size, self.layout, self.key_groups)

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(assigned_spans(self.counts))

    @property
    def canvases_per_device(self) -> int:
        return sum(self.counts)

    @property
    def trained_levels(self) -> tuple[int, ...]:
        return present(self.spans) if self.multi_level else ()

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.architecture, self.numerics)

    @property
    def classifier(self) -> Linear:
        return Linear(self.settings.classes, self.numerics.dtype, classifier_init)

    def init(self, key: Array) -> Variables:
        encoder_key, classifier_key = jax.random.split(key)
        canvases = jnp.zeros((self.layout.levels, self.image_size, self.image_size, 3))
        if self.multi_level:
            spans = assigned_spans((1,) * self.layout.levels)
            flags = {"sides": 1, "full": True, "train": True}
            features, encoder = self.encoder.init_with_output(
                encoder_key, canvases, spans, **flags, method="regions"
            )
        else:
            features, encoder = self.encoder.init_with_output(
                encoder_key, canvases, train=True, method="stage5"
            )
        width = jax.tree.leaves(features)[0].shape[-1]
        classifier = self.classifier.init(classifier_key, jnp.zeros((1, width)))
        params = {"encoder": encoder["params"], "classifier": classifier["params"]}
        return Variables(params, {"encoder": encoder.get("batch_stats", {})}, memory={})

    def inputs(self, seed: Array, step: Array, batch: dict[str, Array], shard: Array) -> Inputs:
        """Views -> canvases and the class of every sub-image.

        Args:
          seed, step, shard: see MCL.inputs.
          batch: also {'label': int32 [b]} in [0, C).
        """
        strides = self.layout.strides if self.multi_level else (1,)
        views = [
            view[0]
            for view in self.augmented(seed, step, batch=batch, shard=shard, strides=strides)
        ]
        key = None
        if self.architecture.drop_path > 0:
            key = key_for(seed, step, key_group=shard, purpose=Purpose.DROP_PATH)
        if not self.multi_level:
            return Inputs(views[0], (batch["label"],), key)
        keys = self.group_keys(seed, step, shard=shard, purpose=Purpose.MONTAGE)
        orders = montage.draw_orders(keys, self.group_size, self.counts)
        built = montage.build(views, orders, layout=self.layout, dtype=self.numerics.dtype)
        return Inputs(built.canvases, tuple(batch["label"][o] for o in built.labels), key)

    def pictures(self, inputs: Inputs) -> dict[str, Array]:
        """Rows of a picture of one device's inputs."""
        if not self.multi_level:
            return {"views": inputs.canvases}
        return montage.rows(inputs.canvases, self.counts)

    def loss(
        self, params: Any, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[Array, Outcome]:
        """Weighted cross-entropy of all levels."""
        variables = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        rngs = {} if inputs.drop_path_key is None else {"drop_path": inputs.drop_path_key}
        options = {"mutable": ["batch_stats"], "rngs": rngs}
        if self.multi_level:
            levels, stats = self.encoder.apply(
                variables,
                inputs.canvases,
                self.spans,
                sides=1,
                full=False,
                train=True,
                method="regions",
                **options,
            )
            features = [x[0] for x in levels]
        else:
            x, stats = self.encoder.apply(
                variables, inputs.canvases, train=True, method="stage5", **options
            )
            features = [x]
        total, metrics = jnp.zeros(()), {}
        for s, (x, classes) in enumerate(zip(features, inputs.classes, strict=True)):
            if x.shape[0] == 0:
                continue
            logits = self.classifier.apply({"params": params["classifier"]}, x)
            weight = self.settings.level_weights[s] if self.multi_level else 1.0
            loss = weight * cross_entropy(logits, classes, self.settings.label_smoothing)
            metrics[f"loss/level{s}"] = loss
            metrics[f"top1/level{s}"] = (logits.argmax(1) == classes).mean()
            total = total + loss
        batch_stats = {"encoder": stats.get("batch_stats", {})}
        return total, Outcome(batch_stats, {}, memory=state.memory, metrics=metrics)
