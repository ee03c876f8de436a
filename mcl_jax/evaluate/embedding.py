"""From canvases to features of a frozen network: what kNN and the linear measures look at.

Shapes: D devices; R = D * r rows, r on every device; F features; C canvas side and H image side in
px.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mcl_jax import losses, montage, sharding
from mcl_jax.models.heads import pool
from mcl_jax.models.pyramid import COARSEST
from mcl_jax.views import color, resample

Array = jax.Array


def center_view(canvas: Array, extent: Array, image_size: int, mean: Any, std: Any) -> Array:
    """Shorter side to 8/7 of H, center crop of H px, normalized: torchvision's test transform.

    Args:
      canvas: uint8 [C, C, 3].
      extent: int32 [2] valid (height, width) in px.
      image_size: H.
      mean, std: per RGB channel, on the [0, 1] scale.

    Returns:
      float32 [H, H, 3].
    """
    side = jnp.maximum(1, jnp.round(extent.min() * 224 / 256)).astype(jnp.int32)
    box = jnp.concatenate([(extent - side) // 2, jnp.stack([side, side])])
    return _view(canvas, box, image_size=image_size, mean=mean, std=std)


def whole_view(canvas: Array, extent: Array, image_size: int, mean: Any, std: Any) -> Array:
    """The whole image, resized to a square: nothing that a label names is cut off (VISSL, VOC07).

    Arguments and result as of `center_view`.
    """
    box = jnp.concatenate([jnp.zeros(2, extent.dtype), extent])
    return _view(canvas, box, image_size=image_size, mean=mean, std=std)


def _view(canvas: Array, box: Array, *, image_size: int, mean: Any, std: Any) -> Array:
    """float32 [H, H, 3] of int32 box [4]: top, left, height, width in px."""
    planes = resample.crop(canvas, box, flip=False, image_size=image_size)
    return color.standardize(planes, mean, std).transpose(0, 2, 1)


def view_function(config: Mapping[str, Any], mesh: Mesh) -> Callable:
    """Compiled (image uint8 [R, C, C, 3], extent int32 [R, 2]) -> float32 [R, H, H, 3]."""
    view = partial(
        center_view,
        image_size=config["data"]["image_size"],
        mean=config["augment"]["mean"],
        std=config["augment"]["std"],
    )
    batch = sharding.BATCH_SPEC
    return jax.jit(
        jax.shard_map(jax.vmap(view), mesh=mesh, in_specs=(batch, batch), out_specs=batch)
    )


def feature_functions(
    encoder: nn.Module, mesh: Mesh, factors: Sequence[int], levels: Sequence[int] = ()
) -> list[Callable]:
    """Compiled (variables, views float32 [R, H, H, 3]) -> {reading: float32 [R, F] of unit length}.

    One function per factor; the network is traced once for all of them.

    A *reading* is what is read of an image at a size: '' is res5 at full size, '/shrinkF' the same
    of the image shrunk by F; '/P5' the pooled RoI head on P5, '/P4', '/P3', '/P2' the same on the
    level that sees an image shrunk by 2, 4 or 8 (montage level s reads P_{5-s}).

    Args:
      encoder: has `numerics` and a method `stage5` that averages res5 with running statistics; for
        levels also `stages` and `region`, see `Encoder`.
      mesh: each device embeds its own images.
      factors: the views are shrunk by it (mean of factor x factor px) and a canvas of H x H px is
        filled with copies; each must divide H.
      levels: montage levels that were trained; with level 0 and factor = 2^s for a level s among
        them, the pyramid is read too.
    """
    local = encoder.clone(numerics=replace(encoder.numerics, axis_name=None))
    # Canvases of all factors have one shape: JAX traces these for the first one, and keeps it.
    stage5 = jax.jit(partial(local.apply, method="stage5"), inline=True)
    stages = jax.jit(partial(local.apply, method="stages"), inline=True)

    def body(variables, views, factor):
        # A canvas of copies: seen alone, a small image would mostly be the network's padding.
        small = jnp.tile(montage.shrink(views, factor, "antialias"), (1, factor, factor, 1))
        level, suffix = factor.bit_length() - 1, "" if factor == 1 else f"/shrink{factor}"
        if factor == 2**level and {0, level} <= set(levels):
            maps = stages(variables, small)
            region = local.apply(variables, maps, level, method="region")
            outputs = {suffix: pool(maps["res5"]), f"/P{COARSEST - level}": region}
        else:
            outputs = {suffix: stage5(variables, small)}
        return jax.tree.map(losses.unit_rows, outputs)

    state, batch = sharding.STATE_SPEC, sharding.BATCH_SPEC
    split = partial(jax.shard_map, mesh=mesh, in_specs=(state, batch), out_specs=batch)
    return [jax.jit(split(partial(body, factor=factor))) for factor in factors]


def full_size(reading: str) -> str:
    """The reading of the same map at full size; shrunk ones are compared with it."""
    return f"/P{COARSEST}" if reading.startswith("/P") else ""
