"""The self-check of an export: what the written file computes is what the checkpoint computes.

Shapes: maps [N, C, H, W].
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax.convert.checks import forward
from mcl_jax.convert.checks.forward import Maps
from mcl_jax.convert.names.layouts import FileLayout
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.heads import RoIHead
from mcl_jax.models.layers import Context, Numerics
from mcl_jax.models.pyramid import FPN, full_spans

Array = jax.Array

TOLERANCE = 1e-5  # of a map's largest value; norms and kernels are float32 on both sides


def reference(
    state: Mapping[str, Any], a: Architecture, parts: Sequence[str], epsilon: float
) -> Maps:
    """What the training code's networks compute, with running statistics; as forward.features.

    In float64, as there: what differs is the file's fault, and not rounding.
    """
    parts = tuple(parts)
    images, rois = (x.transpose(0, 2, 3, 1) for x in forward.inputs(a))
    collections = {
        name: state.get(name, {}).get("encoder", {}) for name in ("params", "batch_stats")
    }
    weights = {
        part: {name: tree[part] for name, tree in collections.items() if part in tree}
        for part in parts
    }
    with jax.enable_x64(True):
        maps = _networks(a, parts, epsilon)(weights, images, rois)
        return {name: np.asarray(x).transpose(0, 3, 1, 2) for name, x in maps.items()}


@lru_cache(maxsize=4)  # exports of one network share the compiled program
def _networks(a: Architecture, parts: tuple[str, ...], epsilon: float) -> Callable:
    """Compiled (weights by part, images, pooled regions) -> maps, in float64."""
    how = Numerics(jnp.float64, bn_momentum=0.0, bn_epsilon=epsilon, axis_name=None)

    def compute(weights: Mapping[str, Any], images: Array, rois: Array) -> dict[str, Array]:
        maps = {}
        if "backbone" in parts:
            context = Context((len(images),), train=False)
            maps = make_backbone(a, how).apply(weights["backbone"], images, context)
            if "fpn" in parts:
                spans = full_spans(len(images))
                maps |= FPN(a.fpn_channels, how).apply(
                    weights["fpn"], maps, spans, sides=1, train=False
                )
        if "head" in parts:
            head = RoIHead(a.fpn_channels, a.head_convs, how)
            maps["head"] = head.apply(weights["head"], rois, Context((len(rois),), train=False))
        return maps

    return jax.jit(compute)


def check(
    model: Mapping[str, np.ndarray],
    layout: FileLayout,
    state: Mapping[str, Any],
    a: Architecture,
    parts: Sequence[str],
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Compares both on a fixed image.

    Args:
      model: arrays as read from the written file.
      layout: what they are.
      state: of the checkpoint.
      a: its networks.
      parts: which of architectures.PARTS are in the file.
      config: of the run: other libraries have no knob for the epsilon of its batch norms.

    Returns:
      Per map the largest difference, as a share of the map's largest value.

    Raises:
      UserError: above TOLERANCE, naming the first map.
    """
    theirs = forward.features(forward.Weights(model, layout), a, parts)
    epsilon = config.get("numerics", {}).get("bn_epsilon", forward.EPSILON)
    ours = reference(state, a, parts=parts, epsilon=epsilon)
    errors = {}
    for name, x in theirs.items():
        largest = max(np.abs(ours[name]).max(), np.finfo(np.float32).tiny)  # of a dead map: 0
        errors[name] = float(np.abs(x - ours[name]).max() / largest)
    for name, error in errors.items():
        if not error <= TOLERANCE:
            raise UserError(
                f"the written file computes another {name}: it differs by {error:.1e} of its "
                f"largest value, {TOLERANCE:g} is allowed"
            )
    return errors
