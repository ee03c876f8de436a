"""Average-pooled maps of a frozen backbone for all images of a split, on all devices.

Shapes: n images of a split, B of a batch of all devices, H image side in px; canvas side C; F_s
channels of stage s (res2..res5).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax import losses, sharding
from mcl_jax.data import loader_settings, pipeline
from mcl_jax.data.record import Source
from mcl_jax.evaluate.embedding import whole_view
from mcl_jax.models.backbone import Architecture, make_backbone
from mcl_jax.models.heads import pool
from mcl_jax.models.layers import Context
from mcl_jax.objectives.build import numerics_of
from mcl_jax.report.progress import Bar
from mcl_jax.settings.records import fill

Array = jax.Array


def feature_function(config: Mapping[str, Any], stages: Sequence[str], mesh: Mesh) -> Callable:
    """Compiled (backbone, batch of image uint8 [B, C, C, 3], extent int32 [B, 2], index [B]).

    Returns of it: (index [B], {stage: float32 [B, F_s] of unit length}), whole on every device.

    Args:
      config: as configs/base.py; sections data, augment, model and numerics are read.
      stages: of the backbone, running statistics.
      mesh: each device reads its own images.
    """
    network = make_backbone(
        fill(Architecture, config["model"]),
        numerics_of(config),
    )
    view = partial(
        whole_view,
        image_size=config["data"]["image_size"],
        mean=config["augment"]["mean"],
        std=config["augment"]["std"],
    )

    def body(backbone: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        views = jax.vmap(view)(batch["image"], batch["extent"])
        maps = network.apply(backbone, views, Context((len(views),), train=False))
        return {stage: losses.unit_rows(pool(maps[stage])) for stage in stages}

    specs = (sharding.STATE_SPEC, sharding.BATCH_SPEC)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH_SPEC)
    replicas = sharding.replicated(mesh)
    return jax.jit(lambda backbone, b: (b["index"], mapped(backbone, b)), out_shardings=replicas)


def collect(
    compute: Callable,
    backbone: Any,
    source: Source,
    config: Mapping[str, Any],
    batch_size: int,
    mesh: Mesh,
    name: str,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of the readable images of a split, in its order, the same on every process.

    Args:
      compute: of `feature_function`.
      backbone: flax variables on the devices.
      source: the split.
      config: section data is read.
      batch_size: B.
      mesh: see `feature_function`.
      name: of the progress bar.

    Returns:
      Numbers of the images in the split, int [m], and {stage: float32 [m, F_s]}.

    Raises:
      UserError: too many images cannot be read.
    """
    total = -(-len(source) // batch_size)
    numbers, rows = [], []
    loader = loader_settings.of_this_process(config["data"], batch_size)
    batches = pipeline.evaluation_batches(source, loader)
    bar = Bar(batches, name, total, unit="batch", disable=jax.process_index() != 0)
    with batches:
        for batch in bar:
            inputs = {key: batch[key] for key in ("image", "extent")}
            inputs["index"] = np.where(batch["valid"], batch["index"], -1).astype(np.int32)
            index, features = jax.device_get(compute(backbone, sharding.put_batch(inputs, mesh)))
            numbers.append(index[index >= 0])
            rows.append({stage: values[index >= 0] for stage, values in features.items()})
    index = np.concatenate(numbers)
    order = np.argsort(index)
    stages = rows[0]
    return index[order], {s: np.concatenate([row[s] for row in rows])[order] for s in stages}
