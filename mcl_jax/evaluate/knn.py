"""Weighted k-nearest-neighbor accuracy of frozen features (Wu et al., 2018), on all devices.

Shapes: D devices; a split of images as rows, r on every device, R = D * r in all, some of which
are padding; F features; H image side in px; k neighbors; queries m on every device, M = D * m.

A bank stays where its features were computed: every device searches its own rows for all queries,
and each query's owner merges the D lists of candidates. What comes out is what one device holding
the whole bank would find, with the same rule for ties: the image that comes first in the split.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mcl_jax import losses, sharding
from mcl_jax.evaluate.embedding import full_size

Array = jax.Array

PADDING = -1  # position of rows that hold no image
_LAST = np.iinfo(np.int32).max


class Rows(NamedTuple):
    """Images of a split, their rows divided over the devices.

    On each device the images' positions must increase from row to row (padding anywhere).
    """

    features: Array  # float32 [R, F], of unit length
    position: Array  # int32 [R] the image's number in its split, PADDING for none
    label: Array  # int32 [R]


class Neighbors(NamedTuple):
    """Of every query the nearest images, nearest first; where there are fewer, PADDING."""

    cosine: Array  # float32 [M, k], -inf at padding
    position: Array  # int32 [M, k]
    label: Array  # int32 [M, k]


def collect(
    batches: Iterable[Mapping[str, np.ndarray]],
    variables: Any,
    view: Callable,
    features: Sequence[Callable],
    mesh: Mesh,
    limit: int,
) -> dict[str, Rows]:
    """Embeds the readable, labeled ones among the first `limit` images of a split.

    Args:
      batches: of `pipeline.evaluation_batches`, this process's; at least one.
      variables: of the encoder, on every device.
      view: of `embedding.view_function`.
      features: of `embedding.feature_functions`.
      mesh: where the rows are left, on the devices that embedded them.
      limit: images after the first so many are taken for padding.

    Returns:
      Per reading the rows; positions and labels are the same in all.
    """
    parts: dict[str, list[Rows]] = {}
    for batch in batches:
        index = batch["index"]
        keep = batch["valid"] & (batch["label"] >= 0) & (index < limit)
        placed = sharding.put_batch(
            {
                "image": batch["image"],
                "extent": batch["extent"],
                "position": np.where(keep, index, PADDING).astype(np.int32),
                "label": batch["label"],
            },
            mesh,
        )
        views = view(placed["image"], placed["extent"])
        for embed in features:
            for reading, values in embed(variables, views).items():
                rows = Rows(values, placed["position"], placed["label"])
                parts.setdefault(reading, []).append(rows)
    return {reading: _joined(mesh)(rows) for reading, rows in parts.items()}


@cache
def _joined(mesh: Mesh) -> Callable:
    """Compiled concatenation in which every device keeps its rows."""
    batch = sharding.BATCH_SPEC

    def body(parts: Sequence[Rows]) -> Rows:
        return Rows(*(jnp.concatenate(part) for part in zip(*parts, strict=True)))

    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(batch,), out_specs=batch))


@cache
def nearest_function(mesh: Mesh, k: int, chunk: int) -> Callable:
    """Compiled (bank: Rows, queries float32 [M, F]) -> Neighbors, divided over the devices.

    Args:
      mesh: both arguments' rows are divided over its data axis.
      k: neighbors wanted.
      chunk: queries of all devices that are compared at a time; bounds the memory of a device at
        chunk x r cosines.
    """

    def search(bank: Rows, local: Array) -> Neighbors:
        """local: this device's [c, F] of the chunk's queries."""
        queries = jax.lax.all_gather(local, sharding.DATA_AXIS, tiled=True)
        cosines = jnp.matmul(queries, bank.features.T, precision=jax.lax.Precision.HIGHEST)
        cosines = jnp.where(bank.position == PADDING, -jnp.inf, cosines)
        best, row = jax.lax.top_k(cosines, min(k, len(bank.position)))  # ties: the first row
        candidates = Neighbors(best, bank.position[row], bank.label[row])
        return _merge([_to_owner(x, mesh.size) for x in candidates], k)

    def body(bank: Rows, queries: Array) -> Neighbors:
        m, f = queries.shape
        size = min(m, max(1, chunk // mesh.size))  # of a chunk on this device
        steps = -(-m // size)
        padded = jnp.pad(queries, ((0, steps * size - m), (0, 0))).reshape(steps, size, f)
        neighbors = jax.lax.map(partial(search, bank), padded)
        return jax.tree.map(lambda x: x.reshape(steps * size, -1)[:m], neighbors)

    batch = sharding.BATCH_SPEC
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(batch, batch), out_specs=batch))


def _to_owner(candidates: Array, devices: int) -> Array:
    """This device's candidates for all queries [D * c, k'] -> all devices' for its own [c, D * k']."""
    split = candidates.reshape(devices, -1, candidates.shape[-1])
    split = jax.lax.all_to_all(split, sharding.DATA_AXIS, 0, 0)
    return split.transpose(1, 0, 2).reshape(split.shape[1], -1)


def _merge(candidates: Sequence[Array], k: int) -> Neighbors:
    """The k nearest of [c, n] candidates; of equally near ones those of the lowest positions."""
    cosine, position, label = candidates
    position = jnp.where(position == PADDING, _LAST, position)
    distance, position, label = jax.lax.sort((-cosine, position, label), num_keys=2)
    position = jnp.where(position == _LAST, PADDING, position)
    return Neighbors(-distance[:, :k], position[:, :k], label[:, :k])


@partial(jax.jit, static_argnames="temperature")
def vote(neighbors: Neighbors, temperature: float) -> Array:
    """int32 [M] class of the most votes, exp(cosine / temperature) each; ties: the lowest class."""
    best = neighbors.cosine.max(1, keepdims=True)  # a common factor changes no vote
    weight = jnp.exp((neighbors.cosine - best) / temperature)
    same = neighbors.label[:, :, None] == neighbors.label[:, None, :]
    votes = jnp.where(same, weight[:, None, :], 0).sum(-1)
    return jnp.where(votes == votes.max(1, keepdims=True), neighbors.label, _LAST).min(1)


@jax.jit
def _images(rows: Rows) -> Array:
    return (rows.position != PADDING).sum()


@jax.jit
def _hits(answer: Array, truth: Array, rows: Rows) -> Array:
    return ((answer == truth) & (rows.position != PADDING)).sum()


def images(rows: Rows) -> int:
    """How many rows are no padding."""
    return int(_images(rows))


def measure(
    bank: Mapping[str, Rows],
    queries: Mapping[str, Rows],
    *,
    neighbors: int,
    temperature: float,
    mesh: Mesh,
    chunk: int,
) -> dict[str, float]:
    """Accuracies in [0, 1] of queries at full and smaller size against full-size banks.

    Args:
      bank: labeled images that vote, for the full-size reading of every query (see `full_size`).
      queries: per reading (see `embedding.feature_functions`), '' among them, the same images; at
        least one.
      neighbors: k; a smaller bank votes as a whole.
      temperature: of the votes.
      mesh, chunk: see `nearest_function`.

    Returns:
      'knn' + reading: share of the queries that get their own class; for shrunk ones also
      'retrieval' + reading: share whose nearest image among the queries at full size is the same
      image.

    A shrunk query is a canvas of copies (see `embedding.feature_functions`). It looks like a
    montage: methods that train on montages know such canvases, others do not.
    """
    results, count = {}, images(queries[""])
    for reading, rows in queries.items():
        full = full_size(reading)
        voters = nearest_function(mesh, neighbors, chunk)(bank[full], rows.features)
        answer = vote(voters, temperature)
        results[f"knn{reading}"] = int(_hits(answer, rows.label, rows)) / count
        if reading != full:
            first = nearest_function(mesh, 1, chunk)(queries[full], rows.features)
            nearest = first.position[:, 0]
            results[f"retrieval{reading}"] = int(_hits(nearest, rows.position, rows)) / count
    return results


def place(features: np.ndarray, labels: np.ndarray, mesh: Mesh) -> Rows:
    """Rows of features float [n, F] and labels int [n] that every process holds as a whole."""
    count = len(features)
    total = -(-count // mesh.size) * mesh.size
    position = np.arange(total, dtype=np.int32)
    padded = Rows(
        np.pad(np.asarray(features, np.float32), ((0, total - count), (0, 0))),
        np.where(position < count, position, PADDING),
        np.pad(np.asarray(labels, np.int32), (0, total - count)),
    )
    split = NamedSharding(mesh, sharding.BATCH_SPEC)
    rows = Rows(*(jax.make_array_from_callback(x.shape, split, x.__getitem__) for x in padded))
    return rows._replace(features=jax.jit(losses.unit_rows, out_shardings=split)(rows.features))


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    neighbors: int,
    temperature: float,
    mesh: Mesh,
    chunk: int,
) -> np.ndarray:
    """Classes int32 [M] of queries float [M, F] by a bank float [n, F] with labels int [n].

    Every process passes the same arrays and gets the whole answer; other arguments: see `measure`.

    Example:
      classify(
          bank, bank_labels, queries, neighbors=20, temperature=0.07, mesh=make_mesh(), chunk=512
      )
    """
    rows = place(queries, np.zeros(len(queries)), mesh)
    placed = place(bank, bank_labels, mesh)
    voters = nearest_function(mesh, neighbors, chunk)(placed, rows.features)
    answer = jax.device_put(vote(voters, temperature), sharding.replicated(mesh))
    return np.asarray(answer)[: len(queries)]
