"""What a checkpoint sees: feature maps in color, retrieval across scales, montages of own images.

Shapes: n images, H image side in px, C canvas side in px; views float32 [n, H, H, 3], normalized;
maps float32 [n, h, w, F].
"""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax import losses, montage, sharding
from mcl_jax.data import decode
from mcl_jax.data.folder import open_folder
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate import embedding
from mcl_jax.evaluate.monitor import encoder_of, read_parts, trained_levels
from mcl_jax.models.backbone import make_backbone
from mcl_jax.models.encoder import Encoder, predictors
from mcl_jax.models.layers import Context
from mcl_jax.models.pyramid import COARSEST, assigned_spans
from mcl_jax.objectives.build import make_objective
from mcl_jax.paths import existing_file, expanded, shown

Array = jax.Array


class Images(NamedTuple):
    """Decoded images."""

    names: tuple[str, ...]
    canvases: np.ndarray  # uint8 [n, C, C, 3]
    extents: np.ndarray  # int32 [n, 2], (height, width) in px
    labels: np.ndarray  # int32 [n], -1 for none
    unreadable: tuple[str, ...]  # what was passed over, and why


def load(paths: Sequence[Path], config: Mapping[str, Any], count: int) -> Images:
    """Readable images of files and folders; without any, of the run's own query split.

    From a folder or split they are spread over it, for folders are read one class after another.

    Raises:
      UserError: for a path that is not there, and where no image can be read.
    """
    data = config["data"]
    decoded, unreadable = [], []
    for name, reader in _candidates(paths, config, count):
        if len(decoded) == count:
            break
        try:
            content, label = reader()
            canvas, extent = decode.decode_to_canvas(content, data["canvas_size"])
        except (decode.DecodeError, OSError) as error:
            unreadable.append(f"{name}: {error}")
            continue
        decoded.append((name, canvas, extent, label))
    if not decoded:
        reasons = "; ".join(unreadable[:3]) or "there are none"
        raise UserError(f"no image can be read ({reasons})")
    names, canvases, extents, labels = zip(*decoded, strict=True)
    arrays = (np.stack(canvases), np.array(extents, np.int32), np.array(labels, np.int32))
    return Images(names, *arrays, tuple(unreadable))


def _candidates(paths: Sequence[Path], config: Mapping[str, Any], count: int) -> Iterable:
    """(name, function that returns (bytes, label)) of every image that is asked for."""
    if not paths:
        data = config["data"]
        split = config["knn"]["query_split"]
        source = open_source(data["dataset"], split, data["data_dir"] or None)
        order = spread(len(source), count)
        return ((f"{split} {i}", lambda i=i: source[i][:2]) for i in order)
    return itertools.chain.from_iterable(_of_path(path, count) for path in paths)


def _of_path(path: Path, count: int) -> Iterable:
    place = expanded(path, "images")
    if not os.path.isdir(place):
        file = Path(existing_file(place, "images", "give image files or folders of them"))
        return [(shown(file.name), lambda: (file.read_bytes(), -1))]
    source = open_folder(place, "train")
    order = spread(len(source), count)
    return ((shown(source.files[i]), lambda i=i: (source[i].data, -1)) for i in order)


def spread(size: int, count: int) -> Iterable[int]:
    """Every index below `size` once, `count` evenly spaced ones before the others."""
    first = dict.fromkeys(i * size // count for i in range(count))
    return itertools.chain(first, (i for i in range(size) if i not in first))


class Look(NamedTuple):
    """What the online network makes of images."""

    views: np.ndarray  # [n, H, H, 3], normalized
    maps: dict[str, np.ndarray]  # of the levels that were pre-trained: P2..P5, or res2..res5
    cosines: dict[int, np.ndarray]  # shrink factor -> cosines [n shrunk, n at full size]
    readings: dict[int, str]  # shrink factor -> what the shrunk image was read at


def look(state: Mapping[str, Any], config: Mapping[str, Any], images: Images) -> Look:
    """Feature maps of every level and the similarity of shrunk images to full-size ones.

    Args:
      state: of `checkpoint.read`.
      config: the run's, complete.
      images: at least one.

    Example:
      state, meta = checkpoint.read("runs/mcl")
      images = load([Path("photos")], meta["config"], count=8)
      look(state, meta["config"], images).maps["P5"].shape
    """
    encoder = encoder_of(config)
    params, stats = (read_parts(state.get(part)) for part in ("params", "batch_stats"))
    variables = {"params": params} | ({"batch_stats": stats} if stats else {})
    mesh = sharding.make_mesh(jax.devices()[:1])
    views = embedding.view_function(config, mesh)(images.canvases, images.extents)
    levels = trained_levels(params, config)
    pyramid = "fpn" in params and config["model"]["neck"] == "fpn" and bool(levels)
    maps = feature_maps(encoder, variables, views=views, pyramid=pyramid)
    if pyramid:
        maps = {name: x for name, x in maps.items() if COARSEST - int(name[1:]) in levels}
    scales = [s for s in levels if s > 0]
    if scales and config["method"] == "mcl" and 0 in levels:
        cosines = between_levels(encoder, state, views=views, levels=max(scales) + 1)
        return Look(
            np.asarray(views),
            maps,
            cosines={2**s: cosines[s] for s in scales},
            readings=_names(scales),
        )
    factors = [f for f in (2, 4, 8) if config["data"]["image_size"] % f == 0]
    function, *small_functions = embedding.feature_functions(encoder, mesh, (1, *factors))
    full = function(variables, views)[""]
    cosines = {}
    for factor, function in zip(factors, small_functions, strict=True):
        (small,) = function(variables, views).values()
        cosines[factor] = np.asarray(small @ full.T)
    return Look(np.asarray(views), maps, cosines=cosines, readings=dict.fromkeys(cosines, "res5"))


def _names(levels: Iterable[int]) -> dict[int, str]:
    return {2**s: f"P{COARSEST - s}" for s in levels}


def between_levels(
    encoder: Encoder, state: Mapping[str, Any], views: Array, levels: int
) -> list[np.ndarray]:
    """Cosines [n, n] that the loss compares: predictions of a level's sub-images, targets of level 0.

    A level's canvas is filled with copies of one image. Batch statistics, as in training: the head
    that all levels share has running statistics of all of them together.

    Args:
      encoder: the online network.
      state: of `checkpoint.read`, of method 'mcl'.
      views: [n, H, H, 3].
      levels: how many, from level 0 on.
    """
    n = len(views)
    copies = [
        jnp.tile(montage.shrink(views, 2**s, "antialias"), (1, 2**s, 2**s, 1))
        for s in range(levels)
    ]
    fields = ("params", "batch_stats")
    online, predictor = ({k: state[k][part] for k in fields} for part in ("encoder", "predictor"))
    target = {k: state[f"target_{k}"] for k in fields}
    heads = predictors(encoder.architecture, encoder.numerics)
    mutable = {"mutable": ["batch_stats"]}

    @jax.jit
    def compute(online, predictor, target, canvases):
        spans = assigned_spans((n,) * levels)
        projections, _ = encoder.apply(
            online, canvases, spans, sides=1, full=False, train=True, **mutable
        )
        u, _ = heads.apply(predictor, projections, train=True, **mutable)
        (v,), _ = encoder.apply(
            target, canvases[:n], spans[:1], sides=1, full=False, train=True, **mutable
        )
        v = losses.unit_rows(v.reshape(n, -1))
        return [losses.unit_rows(x.reshape(n, -1, v.shape[1]).mean(1)) @ v.T for x in u]

    return [np.asarray(x) for x in compute(online, predictor, target, jnp.concatenate(copies))]


def feature_maps(encoder, variables: Any, views: Array, *, pyramid: bool) -> dict[str, np.ndarray]:
    """Maps with running statistics, finest first: P2..P5, or res2..res5 without a pyramid."""

    def compute(variables, views):
        if pyramid:
            return encoder.apply(variables, views, method="features")
        stages = make_backbone(encoder.architecture, encoder.numerics)
        backbone = {name: tree["backbone"] for name, tree in variables.items()}
        return stages.apply(backbone, views, Context((len(views),), train=False))

    maps = jax.jit(compute)(variables, views)
    prefix = "P" if pyramid else "res"
    names = [f"{prefix}{level}" for level in (2, 3, 4, 5)]
    return {name: np.asarray(maps[name], np.float32) for name in names}


def principal_colors(maps: np.ndarray) -> np.ndarray:
    """The first three principal components of all pixels' features as red, green and blue.

    Args:
      maps: [n, h, w, F].

    Returns:
      float32 [n, h, w, 3] in [0, 1]; what lies outside the 1st..99th percentile is clipped.
      Networks of fewer than three channels leave colors at a half.
    """
    pixels = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    pixels = pixels - pixels.mean(0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    vectors = vectors[:, ::-1][:, :3]
    # a component's sign is arbitrary: the largest weight is positive, so pictures are comparable
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    components = pixels @ (vectors * signs)
    low, high = np.percentile(components, (1, 99), axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.full((len(pixels), 3), 0.5)
    colors[:, : scaled.shape[1]] = scaled
    return colors.reshape(*maps.shape[:3], 3).astype(np.float32)


class Assembled(NamedTuple):
    """What training would make of images."""

    rows: dict[str, np.ndarray]  # title -> [m, H, H, 3], normalized
    levels: tuple[int, ...]  # per row its montage level; () where the method assembles none
    image_count: int


def assemble(config: Mapping[str, Any], images: Images) -> Assembled:
    """The inputs of step 0, of as many of the images as fill whole canvases.

    Raises:
      UserError: where no number of them does.
    """
    config = {**config, "data": {**config["data"], "group_size": 0}}
    count, levels = len(images.names), None
    while levels is None:
        try:
            objective = make_objective(config, count, norm_axis=None)
            levels = objective.trained_levels  # which looks whether canvases are filled
        except UserError:
            count -= 1
            if not count:
                raise
    labels = np.maximum(images.labels, 0)
    fields = {"image": images.canvases, "extent": images.extents, "label": labels}
    batch = {name: jnp.asarray(fields[name][:count]) for name in objective.batch_fields}
    inputs = jax.jit(objective.inputs)(np.uint32(config["seed"]), 0, batch, 0)
    rows = {title: np.asarray(x, np.float32) for title, x in objective.pictures(inputs).items()}
    return Assembled(rows, levels if len(levels) == len(rows) else (), count)
