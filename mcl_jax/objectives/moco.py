"""MoCo v2: one view against its key and a queue of past keys (He et al.; Chen et al., 2020).

Shapes: b images of this device, V = 2 sides (q: query, k: key); images [V, b, H, H, 3]; features
[b, D]; queue [K, D].

The key network is the trainer's target network. train_step averages it after the optimizer step:
that is MoCo's 'update the key encoder before encoding keys', one step written the other way round.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.image_encoder import ImageEncoder
from mcl_jax.models.layers import Context
from mcl_jax.objectives import contrast, queues
from mcl_jax.objectives.base import Common, Outcome, Variables
from mcl_jax.sharding import AxisName
from mcl_jax.state import TrainState

Array = jax.Array

QUERY, KEY = 0, 1  # sides of the augmentation


class Inputs(NamedTuple):
    """Both sides' views of one device."""

    images: Array  # [V, b, H, H, 3]
    order: Array  # int32 [b] of the key batch, read by shuffled BN alone


def draw_order(seed: Array, step: Array, shard: Array, images: int) -> Array:
    """int32 [b]: this shard's permutation of its key batch at this step."""
    key = key_for(seed, step, key_group=shard, purpose=Purpose.SHUFFLE)
    return jax.random.permutation(key, images).astype(jnp.int32)


def encode_with(encoder: Any, params: Any, batch_stats: Any) -> contrast.Encode:
    """encode(batch, context) of a network; a batch is the tuple of its array arguments."""

    def encode(batch: tuple[Array, ...], context: Context) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        features, updated = encoder.apply(variables, *batch, context, mutable=["batch_stats"])
        return features, updated.get("batch_stats", {})

    return encode


def encoder_variables(variables: Any, memory: Any) -> Variables:
    """A network without predictor; one without BN (Swin) has no statistics."""
    stats = variables.get("batch_stats", {})
    return Variables({"encoder": variables["params"]}, {"encoder": stats}, memory)


@dataclass(frozen=True)
class MoCo(Common):
    """The method as pure functions over (params, state, inputs)."""

    settings: contrast.QueueSettings

    def __post_init__(self):
        super().__post_init__()
        self.settings.context(self.images_per_device)  # validates norm_group

    @property
    def encoder(self) -> ImageEncoder:
        numerics = self.settings.numerics(self.numerics)
        return ImageEncoder(self.architecture, numerics, normed_projector=False)

    def init(self, key: Array) -> Variables:
        """Parameters under 'encoder', and memory {'queue': [K, D], 'pointer': int32}."""
        encoder_key, queue_key = jax.random.split(key)
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        variables = self.encoder.init(encoder_key, images, Context((1,), train=True))
        dimensions = self.architecture.projector_out
        memory = {
            "queue": queues.create(queue_key, self.settings.queue_size, dimensions),
            "pointer": jnp.zeros((), jnp.int32),
        }
        return encoder_variables(variables, memory)

    def inputs(self, seed: Array, step: Array, batch: dict[str, Array], shard: Array) -> Inputs:
        """Query and key view of every image; arguments as in objectives.base."""
        (views,) = self.augmented(seed, step, batch=batch, shard=shard)
        return Inputs(views, draw_order(seed, step, shard=shard, images=views.shape[1]))

    def pictures(self, inputs: Inputs) -> dict[str, Array]:
        """Rows of a picture of one device's inputs."""
        return {"query": inputs.images[QUERY], "key": inputs.images[KEY]}

    def network_inputs(self, inputs: Inputs, side: int) -> tuple[Array, ...]:
        """What the encoder is called with for one side."""
        return (inputs.images[side],)

    def compare(self, u: Any, keys: Any, queue: Any) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics) of query features against their keys and the queue of earlier steps."""
        loss, metrics = contrast.info_nce(
            u, keys, queue=queue, temperature=self.settings.temperature
        )
        metrics = {f"{name}/level0": value for name, value in metrics.items()}
        return loss, metrics | {"std/level0": u.std(0).mean()}

    def keys(
        self, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[Any, Any]:
        """(unit key features without gradients, the key network's running statistics)."""
        encode = encode_with(self.encoder, state.target_params, state.target_batch_stats)
        batch = self.network_inputs(inputs, KEY)
        return contrast.encode_keys(
            encode, batch, order=inputs.order, settings=self.settings, axis_name=axis_name
        )

    def loss(
        self, params: Any, state: TrainState, inputs: Inputs, axis_name: AxisName | None
    ) -> tuple[Array, Outcome]:
        """Loss of this device's queries; their keys join the queue afterwards."""
        keys, target_stats = self.keys(state, inputs, axis_name)
        return self.against(
            keys, target_stats, params=params, state=state, inputs=inputs, axis_name=axis_name
        )

    def against(
        self,
        keys: Any,
        target_stats: Any,
        params: Any,
        state: TrainState,
        inputs: Inputs,
        axis_name: AxisName | None,
    ) -> tuple[Array, Outcome]:
        """`loss` with key features and the key network's new statistics given."""
        encode = encode_with(self.encoder, params["encoder"], state.batch_stats["encoder"])
        batch = self.network_inputs(inputs, QUERY)
        u, stats = contrast.encode_queries(
            encode, batch, settings=self.settings, axis_name=axis_name
        )
        queue, pointer = state.memory["queue"], state.memory["pointer"]
        loss, metrics = self.compare(u, keys, queue)
        queue, pointer = queues.enqueue(queue, pointer, keys=keys, axis_name=axis_name)
        memory = {"queue": queue, "pointer": pointer}
        return loss, Outcome({"encoder": stats}, target_stats, memory=memory, metrics=metrics)
