"""A pre-trained network, frozen: feature maps of any images.

Shapes: N images [N, h, w, 3] of h x w px; a map of stride s float32 [N, h/s, w/s, C].
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mcl_jax import sharding
from mcl_jax.errors import UserError
from mcl_jax.evaluate.monitor import encoder_of, read_parts, trained_levels
from mcl_jax.models.backbone import make_backbone
from mcl_jax.models.layers import Context
from mcl_jax.models.pyramid import COARSEST
from mcl_jax.settings import arguments

STAGES = ("res2", "res3", "res4", "res5")
STRIDE = 32  # of the coarsest map


class FrozenNetwork:
    """The online network of a run, with running statistics. Made by `mcl_jax.load`.

    Attributes:
      config: of the run, as nested dicts.
      step: finished steps of its pre-training.
      names: of the maps that `features` gives: res2..res5, and of P2..P5 those whose level was
        pre-trained.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Any],
        *,
        step: int,
        levels: tuple[int, ...] | None = None,
    ):
        """
        Args:
          config: of the run, complete.
          state: with the collections `params` and `batch_stats`, as `checkpoint.read` returns it.
          step: of the checkpoint.
          levels: montage levels s whose P(5-s) can be read; None: those that the run trained.
        """
        self.config, self.step = config, step
        params, statistics = (read_parts(state.get(part)) for part in ("params", "batch_stats"))
        has_pyramid = "fpn" in params and config["model"]["neck"] == "fpn"
        if not has_pyramid:
            levels = ()
        elif levels is None:
            levels = trained_levels(params, config)
        self.names = (*STAGES, *(f"P{COARSEST - s}" for s in sorted(levels, reverse=True)))
        self._mesh = sharding.make_mesh(jax.local_devices())
        variables = {"params": params} | ({"batch_stats": statistics} if statistics else {})
        self._variables = jax.device_put(variables, sharding.replicated(self._mesh))
        self._compute = _compute_function(config, self.names, self._mesh)

    def features(self, images: Any, *, batch_size: int = 64) -> dict[str, np.ndarray]:
        """Feature maps of images.

        Args:
          images: [N, h, w, 3] in RGB, uint8, or floats in [0, 1]; h and w multiples of 32 px, N from
            0 on. They are normalized here as in training.
          batch_size: images that are computed at a time, on all local devices together. Every new
            (batch, h, w) is compiled once.

        Returns:
          Name -> float32 [N, h/s, w/s, C], on the host: 'res2'..'res5' (strides s = 4, 8, 16, 32) and,
          of networks with a pre-trained FPN, 'P2'..'P5' (the same strides).

        Raises:
          UserError: for images of another shape, type or range.

        Example:
          >>> network = mcl_jax.load(workdir)
          >>> maps = network.features(np.zeros((3, 64, 96, 3), np.uint8))
          >>> maps["res5"].shape[:3], maps["P4"].shape[:3]
          ((3, 2, 3), (3, 4, 6))
        """
        images = _checked(images)
        arguments.demand(batch_size=batch_size)
        devices = self._mesh.size
        most = -(-min(batch_size, max(len(images), 1)) // devices) * devices
        chunks: list[dict[str, np.ndarray]] = []
        for start in range(0, max(len(images), 1), most):
            part = images[start : start + most]
            missing = most - len(part)  # images of zeros fill up the last batch
            full = np.concatenate([part, np.zeros((missing, *images.shape[1:]), images.dtype)])
            placed = sharding.put_batch({"image": full}, self._mesh)["image"]
            maps = jax.device_get(self._compute(self._variables, placed))
            chunks.append({name: x[: len(part)] for name, x in maps.items()})
        return {name: np.concatenate([maps[name] for maps in chunks]) for name in self.names}

    def __repr__(self) -> str:
        model = self.config["model"]
        return (
            f"FrozenNetwork({self.config['method']}, {model['backbone']}, step {self.step}, "
            f"maps {', '.join(self.names)})"
        )


def _compute_function(config: Mapping[str, Any], names: tuple[str, ...], mesh: Mesh) -> Any:
    """Compiled (variables, images [N, h, w, 3]) -> name -> float32 [N, h/s, w/s, C]."""
    encoder = encoder_of(config)
    mean, std = (jnp.asarray(config["augment"][key], jnp.float32) for key in ("mean", "std"))

    def body(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        scale = 255 if images.dtype == jnp.uint8 else 1
        views = (images.astype(jnp.float32) / scale - mean) / std
        maps: Any
        if len(names) > len(STAGES):
            maps = encoder.apply(variables, views, method="features")
        else:
            stages = make_backbone(encoder.architecture, encoder.numerics)
            backbone = {name: tree["backbone"] for name, tree in variables.items()}
            maps = stages.apply(backbone, views, Context((len(views),), train=False))
        return {name: maps[name].astype(jnp.float32) for name in names}

    state, batch = sharding.STATE_SPEC, sharding.BATCH_SPEC
    split = partial(jax.shard_map, mesh=mesh, in_specs=(state, batch), out_specs=batch)
    return jax.jit(split(body))


def _checked(images: Any) -> np.ndarray:
    """The images as uint8 or float32; UserError for what is none."""
    try:
        images = np.asarray(images)
    except ValueError as error:  # NumPy's word for it is "inhomogeneous"
        raise UserError("images differ in size; resize them, or give one at a time") from error
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images have the shape {images.shape}; it must be [N, height, width, 3]")
    height, width = images.shape[1:3]
    if not height or not width or height % STRIDE or width % STRIDE:
        raise UserError(
            f"images are {height} x {width} px; both must be multiples of {STRIDE}: resize or pad them"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images are {images.dtype}; they must be uint8, or floats in [0, 1]")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"floating-point images reach from {images.min():g} to {images.max():g}; they must lie in "
            "[0, 1] and be finite (uint8 images in 0..255)"
        )
    return images.astype(np.float32)
