"""What the tests of BYOL, MoCo and DetCo share: a network that compiles fast, states, residuals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny_config
from jax.sharding import PartitionSpec as P

from mcl_jax import sharding
from mcl_jax.models import image_encoder
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import ConvNorm, Numerics
from mcl_jax.models.resnet import STAGES
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState
from mcl_jax.views import augment

SIDE = 32  # px
OUT = 8  # dimensions of embeddings


class FourStages(nn.Module):
    """Stands in for a backbone: two convolutions with BN, and four stages that differ."""

    numerics: Numerics

    @nn.compact
    def __call__(self, images, context):
        x = images[:, ::4, ::4]
        res2 = ConvNorm(5, self.numerics, kernel_size=1, name="first")(x, context)
        res5 = ConvNorm(8, self.numerics, kernel_size=1, stride=2, name="second")(res2, context)
        return dict(
            zip(STAGES, (res2, jnp.square(res2)[..., 1:], res5[..., 1:], res5), strict=True)
        )


def use_small_backbone(patch):
    """For a pytest.MonkeyPatch."""
    patch.setattr(image_encoder, "make_backbone", lambda _, numerics: FourStages(numerics))


def arguments(images_per_device, axis_name=None):
    """What every objective's constructor takes besides its own settings."""
    model = dict(tiny_config().model) | {"projector_hidden": 12, "projector_out": OUT}
    return {
        "architecture": Architecture(**model),
        "numerics": Numerics(jnp.float32, 0.9, bn_epsilon=1e-5, axis_name=axis_name),
        "views": fill(augment.AugmentSettings, tiny_config().augment),
        "image_size": SIDE,
        "images_per_device": images_per_device,
        "group_size": images_per_device,
    }


def new_state(objective, seed=0):
    """A state of the objective's shapes, filled by numpy, which needs no compilation."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = str(path[-1].key)
        if name in ("scale", "var"):
            return np.float32(rng.uniform(0.6, 1.4, x.shape))
        if np.issubdtype(x.dtype, np.integer):
            return np.zeros(x.shape, x.dtype)
        values = rng.normal(size=x.shape) * (0.2 if x.ndim == 1 else 0.5)
        in_memory = path[0].idx == 2
        return np.float32(unit(values) if in_memory else values)

    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    first, other = (jax.tree_util.tree_map_with_path(leaf, tree) for tree in [tuple(shapes)] * 2)
    return TrainState(
        step=np.int32(0),
        params=first[0],
        batch_stats=first[1],
        target_params=other[0]["encoder"],
        target_batch_stats=other[1]["encoder"],
        opt_state=None,
        memory=first[2],
    )


def pictures(*shape, seed=0):
    """Images that differ in their means too, as real ones do."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape) + rng.normal(size=shape[:-3] + (1, 1, 3))
    return jnp.asarray(noise, jnp.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_info_nce(q, k, queue, tau):
    """(1 + K)-way cross-entropy with label 0, row by row in float64."""
    total = 0.0
    for query, key in zip(q, k, strict=True):
        logits = np.array([query @ key, *(query @ row for row in queue)]) / tau
        total += np.log(np.exp(logits).sum()) - logits[0]
    return total / len(q)


def residual_bytes(loss, params, *rest):
    """Memory that the backward pass of `loss` w.r.t. `params` holds on to; traced, not run."""
    shapes = jax.eval_shape(lambda p, *r: jax.vjp(lambda p: loss(p, *r), p)[1], params, *rest)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def residuals(objective, state, inputs):
    """Residuals with keys made inside and with keys given; and with one more encoder pass."""
    keys, stats = jax.eval_shape(lambda s, i: objective.keys(s, i, None), state, inputs)

    def inside(params, state, inputs, keys, stats):
        return objective.loss(params, state, inputs, None)[0]

    def given(params, state, inputs, keys, stats):
        return objective.against(keys, stats, params, state, inputs, None)[0]

    def more(params, state, inputs, keys, stats):
        swapped = inputs._replace(images=inputs.images[::-1])
        losses = (objective.loss(params, state, i, None)[0] for i in (inputs, swapped))
        return sum(losses)

    return tuple(
        residual_bytes(loss, state.params, state, inputs, keys, stats)
        for loss in (inside, given, more)
    )


def on_all_devices(objective):
    """(state, inputs of eight devices) -> (mean loss, outcome), proven equal on all of them."""

    def body(state, inputs):
        inputs = jax.tree.map(lambda x: x[0], inputs)
        loss, outcome = objective.loss(state.params, state, inputs, sharding.DATA_AXIS)
        mean = jax.lax.pmean((loss, outcome.metrics), sharding.DATA_AXIS)
        return mean[0], outcome._replace(metrics=mean[1])

    return jax.shard_map(
        body, mesh=sharding.make_mesh(), in_specs=(P(), P(sharding.DATA_AXIS)), out_specs=P()
    )
