"""Where a backbone is active: maps of res2..res5 as heat over the images (DetCo Figure 4).

The paper does not say how its figure was made. Here a pixel's activation is the sum over channels of
the squared outputs of a stage, the attention map F_sum^2 of Zagoruyko and Komodakis (2017, section
3.1, equation 1): it needs no labels, no gradients and no classifier. Every map is scaled on its own
from its lowest value (0) to its highest (1), so colors compare places in an image, not networks.

Shapes: n images, H image side in px; views float32 [n, H, H, 3], normalized; a stage's maps
float32 [n, h, w, F], its activations float32 [n, h, w].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from mcl_jax import sharding
from mcl_jax.evaluate import embedding, visualize
from mcl_jax.evaluate.monitor import encoder_of, read_parts
from mcl_jax.report import sheets


class Checkpoint(NamedTuple):
    """A network to look into."""

    name: str  # what the picture calls it
    state: Mapping[str, Any]  # of `checkpoint.read`
    config: Mapping[str, Any]  # the run's, complete


def activation(maps: np.ndarray) -> np.ndarray:
    """[n, h, w, F] -> [n, h, w] in [0, 1]: sum of squares over channels, each image scaled to 0..1.

    A map that is the same everywhere gives zeros.
    """
    energy = np.square(maps.astype(np.float64)).sum(-1)
    low, high = energy.min((1, 2), keepdims=True), energy.max((1, 2), keepdims=True)
    return ((energy - low) / np.where(high > low, high - low, 1)).astype(np.float32)


def activations(
    checkpoint: Checkpoint, images: visualize.Images
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What a checkpoint's backbone (running statistics) makes of images.

    Returns:
      The views' pixels [n, H, H, 3] in [0, 1], and stage -> activations [n, h, w].
    """
    config, state = checkpoint.config, checkpoint.state
    params, statistics = (read_parts(state.get(part)) for part in ("params", "batch_stats"))
    variables = {"params": params} | ({"batch_stats": statistics} if statistics else {})
    mesh = sharding.make_mesh(jax.devices()[:1])
    views = embedding.view_function(config, mesh)(images.canvases, images.extents)
    maps = visualize.feature_maps(encoder_of(config), variables, views, pyramid=False)
    pixels = np.asarray(views) * config["augment"]["std"] + config["augment"]["mean"]
    return np.clip(pixels, 0, 1), {stage: activation(x) for stage, x in maps.items()}


def draw(
    path: Path, checkpoints: Sequence[Checkpoint], images: visualize.Images, rows: int
) -> None:
    """A PNG with a row per image: the image, then every stage of all checkpoints side by side.

    Args:
      path: PNG to write.
      checkpoints: one or more, of any methods; all look at the same images, each at its own size.
      images: the first `rows` are shown.
      rows: images at most.
    """
    first_images = visualize.Images(*(part[:rows] for part in images))
    looks = [activations(checkpoint, first_images) for checkpoint in checkpoints]
    columns = []
    for stage in looks[0][1]:
        for checkpoint, (pixels, heat) in zip(checkpoints, looks, strict=True):
            size = "x".join(map(str, heat[stage].shape[1:]))
            title = f"{stage} ({size})\n{checkpoint.name}"
            columns.append((title, pixels, enlarged(heat[stage], pixels.shape[1])))
    sheets.activations(path, looks[0][0], columns)


def enlarged(heat: np.ndarray, side: int) -> np.ndarray:
    """[n, h, w] -> [n, H, H], bilinearly."""
    size = (side, side)
    return np.stack([cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) for each in heat])


def names(folders: Sequence[Path]) -> list[str]:
    """What to call checkpoints: the shortest endings of their paths that differ."""
    parts = [folder.resolve().parts for folder in folders]
    length = 1
    while length < max(map(len, parts)) and len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return [str(Path(*p[-length:])) for p in parts]
