"""The probe's training and test loops: read, embed once or every time, step, save, resume, detect.

Shapes: n images of a set, B of a batch, H their side in px, N boxes of an image (padded), D
detections of an image.

The order of images, their mirroring and their sizes depend on (seed, step), so a killed training
goes on from its last saved state and ends bit by bit as the uninterrupted one on the same devices.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mcl_jax import sharding
from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.boxed_images import BoxedImages, BoxedSet, Truth, joined, read_ahead
from mcl_jax.evaluate.detection.detector import PARTS, Detector, ProbeSettings
from mcl_jax.evaluate.detection.functions import Functions, Inputs, compiled
from mcl_jax.evaluate.detection.nms import Detections
from mcl_jax.keys import Purpose, key_for
from mcl_jax.report.progress import Bar
from mcl_jax.runtime import json_files, storage
from mcl_jax.runtime.storage import Place

STATE_FILE = "state.npz"
Variables = dict[str, Any]


class Stopped(Exception):
    """The process was asked to stop; the state is saved, the same call goes on later."""


@dataclass(frozen=True)
class Conduct:
    """How a probe behaves; no number depends on it.

    Attributes:
      folder: where the state of a training is kept; None: nowhere.
      threads: that read and decode images.
      progress: whether bars are drawn on stderr.
      stops: called with the number of finished steps; True saves the state and raises `Stopped`.
    """

    folder: Place | None = None
    threads: int = 2
    progress: bool = False
    stops: Callable[[int], bool] = lambda step: False


def one_device() -> Mesh:
    """A mesh of the default device."""
    return sharding.make_mesh(jax.devices()[:1])


def fit(
    detector: Detector,
    variables: Mapping[str, Any],
    data: BoxedSet,
    seed: int,
    *,
    mesh: Mesh | None = None,
    conduct: Conduct | None = None,
    identity: Mapping[str, Any] | None = None,
) -> tuple[Variables, int]:
    """Trains the trained parts on images and mirror images.

    Args:
      variables: of the pre-trained parts, {part: {'params', 'batch_stats'}}; not changed.
      data: labeled images.
      seed: of the new parts' parameters, of the order of images and of their augmentation.
      mesh: devices to run on; None: the default device.
      identity: what decides the result, JSON; a saved state goes on only with the same.

    Returns:
      Variables of all parts, of frozen ones those given, and the steps of this call: fewer than all
      if it went on with a saved state.

    Raises:
      UserError: too many images cannot be read, or the folder holds another training.
      Stopped: see `Conduct`.
    """
    mesh, conduct = mesh or one_device(), conduct or Conduct()
    s, functions = detector.settings, compiled(detector, mesh)
    sharding.images_per_device(s.batch_size, mesh, "probe.batch_size")
    missing = tuple(part for part in PARTS if part not in variables)
    variables = dict(variables) | functions.initial(key_for(seed, 0, 0, Purpose.PROBE), missing)
    variables = functions.replicate(variables)
    frozen = {part: v for part, v in variables.items() if part not in detector.trained}
    trained = {part: variables[part] for part in detector.trained}
    memory = functions.optimizer.init({part: v["params"] for part, v in trained.items()})
    memory = functions.replicate(memory)
    state = _State(conduct.folder, identity or {})
    start, (trained, memory) = state.load((trained, memory), functions)
    feed = Feed(detector, functions, frozen=frozen, data=data, seed=seed, conduct=conduct)
    bar = Bar(total=s.steps, initial=start, unit="step", disable=not conduct.progress)
    loss, since = np.float32(0), time.monotonic()
    with bar:
        for step, (inputs, targets) in feed.batches(start):
            jax.block_until_ready(loss)  # one step in flight: no queue of batches on the device
            lr = np.float32(learning_rate(s, step))
            trained, memory, loss = functions.step(trained, memory, frozen, inputs, targets, lr)
            done = step + 1
            stops = conduct.stops(done) and done < s.steps
            if conduct.folder and (done % s.checkpoint_steps == 0 or done == s.steps or stops):
                state.save((trained, memory), done)
            if stops:
                raise Stopped
            if time.monotonic() - since > 2:
                bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)
                since = time.monotonic()
            bar.update()
    return frozen | trained, s.steps - start


class Feed:
    """A training's batches on the devices."""

    def __init__(
        self,
        detector: Detector,
        functions: Functions,
        frozen: Variables,
        data: BoxedSet,
        seed: int,
        conduct: Conduct,
    ):
        self._settings, self._functions, self._frozen = detector.settings, functions, frozen
        self._data, self._seed, self._conduct = data, seed, conduct
        self._features = self._embedded() if self._embeds_once() else None

    def batches(self, start: int) -> Iterator[tuple[int, tuple[Inputs, Any]]]:
        """(step, (inputs, targets)) of the steps from `start` on."""
        s = self._settings
        rng = np.random.default_rng((self._seed, Purpose.PROBE))
        order = _batches(rng, len(self._data), batch_size=s.batch_size, steps=s.steps)[start:]
        stream = read_ahead(self.read, order, self._conduct.threads)
        for step, (rows, batch) in enumerate(stream, start):
            yield step, self.placed(step, rows, batch)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, BoxedImages]:
        """Rows, i + n for the mirror image of i, with the images (not mirrored)."""
        return rows, self._data.read(rows % len(self._data))

    def placed(self, step: int, rows: np.ndarray, batch: BoxedImages) -> tuple[Inputs, Any]:
        """(inputs, targets) of a step on the devices."""
        split, functions = self._functions.split, self._functions
        mirrored, extents, truth = split((rows >= len(self._data), batch.extents, batch.truth))
        placement = None
        if self._settings.jitters:
            placement = functions.placement(np.uint32(self._seed), np.int32(step), extents)
        targets = functions.targets(truth, extents, mirrored, placement)
        if self._features is not None:
            features = jax.tree.map(lambda x: x[rows], self._features)
            return {"features": split(features)}, targets
        images = split(batch.images)
        geometry = {"extents": extents, "mirrored": mirrored, "placement": placement}
        return {"images": images} | geometry, targets

    def _embeds_once(self) -> bool:
        """Whether what frozen parts put out is worth keeping, and fits."""
        s, n = self._settings, len(self._data)
        if not self._frozen or s.jitters or 2 * n > s.steps * s.batch_size:
            return False
        inputs = _plain_inputs(np.zeros((1, s.image_size, s.image_size, 3), np.uint8))
        outputs = jax.eval_shape(self._functions.embed, self._frozen, inputs)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(outputs))
        return 2 * n * size <= s.cache_gb * 1e9

    def _embedded(self) -> Any:
        """Outputs of the frozen parts for all images, then for all mirror images, in numpy."""
        n, functions = len(self._data), self._functions
        rows = _chunks(2 * n, _chunk_size(self._settings, functions.mesh))
        store = None
        bar = Bar(total=2 * n, unit="image", desc="frozen", disable=not self._conduct.progress)
        with bar:
            for chunk, batch in read_ahead(self.read, rows, self._conduct.threads):
                inputs = _plain_inputs(batch.images, batch.extents, chunk >= n)
                outputs = functions.embed(self._frozen, functions.split(inputs))
                outputs = jax.device_get(outputs)
                if store is None:
                    store = jax.tree.map(
                        lambda x: np.empty((2 * n, *x.shape[1:]), x.dtype), outputs
                    )
                for array, part in zip(
                    jax.tree.leaves(store), jax.tree.leaves(outputs), strict=True
                ):
                    array[chunk] = part
                bar.update(min(len(chunk), bar.total - bar.n))
        return store


def _plain_inputs(
    images: np.ndarray, extents: np.ndarray | None = None, mirrored: np.ndarray | None = None
) -> dict[str, Any]:
    """Inputs of images that keep their size."""
    n = len(images)
    return {
        "images": images,
        "extents": np.zeros((n, 2), np.int32) if extents is None else extents,
        "mirrored": np.zeros(n, bool) if mirrored is None else mirrored,
        "placement": None,
    }


class _State:
    """The saved state of one training."""

    def __init__(self, folder: Place | None, identity: Mapping[str, Any]):
        self._path = None if folder is None else folder / STATE_FILE
        self._identity = json.loads(json.dumps(identity))

    def save(self, tree: Any, step: int) -> None:
        leaves = jax.tree.leaves(jax.device_get(tree))
        arrays = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        about = {"step": step, "identity": json.dumps(self._identity)}
        storage.write_result(self._path, lambda file: np.savez(file, **about, **arrays))

    def load(self, tree: Any, functions: Functions) -> tuple[int, Any]:
        """(finished steps, the saved tree), or (0, the given tree)."""
        if self._path is None or not storage.exists(self._path):
            return 0, tree
        arrays = json_files.read_arrays(self._path, "a saved probe", ("step", "identity"))
        check_identity(json.loads(str(arrays["identity"])), self._identity, self._path.parent)
        leaves, structure = jax.tree.flatten(tree)
        saved = [arrays[f"leaf{i}"] for i in range(len(leaves))]
        return int(arrays["step"]), functions.replicate(jax.tree.unflatten(structure, saved))


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any], folder: Place) -> None:
    """UserError if what a folder was made with is not what it shall go on with."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{folder} holds a probe with {name} {before.get(name)}, not {now.get(name)}; give "
                "a new --output"
            )


def detect(
    detector: Detector,
    variables: Mapping[str, Any],
    data: BoxedSet,
    *,
    mesh: Mesh | None = None,
    conduct: Conduct | None = None,
) -> tuple[Truth, Detections]:
    """True boxes [n, N] and detections [n, D] of all images, as numpy, with running statistics."""
    mesh, conduct = mesh or one_device(), conduct or Conduct()
    functions = compiled(detector, mesh)
    frozen = {part: v for part, v in variables.items() if part not in detector.trained}
    trained = {part: variables[part] for part in detector.trained}
    results, truths, rest = [], [], len(data)
    rows = _chunks(len(data), _chunk_size(detector.settings, mesh))
    bar = Bar(total=len(data), unit="image", desc="test", disable=not conduct.progress)
    with bar:
        for batch in read_ahead(data.read, rows, conduct.threads):
            images, extents = functions.split((batch.images, batch.extents))
            detections = functions.predict(trained, frozen, images, extents)
            count = min(rest, len(batch.images))
            results.append(jax.tree.map(lambda x, k=count: np.asarray(x)[:k], detections))
            truths.append(Truth(*(x[:count] for x in batch.truth)))
            rest -= count
            bar.update(count)
    return joined(truths), jax.tree.map(lambda *x: np.concatenate(x), *results)


def learning_rate(settings: ProbeSettings, step: int) -> float:
    """Linear warm-up to `base_lr`, then half a cosine to 0 at `steps`."""
    s = settings
    if step < s.warmup_steps:
        return s.base_lr * (step + 1) / (s.warmup_steps + 1)
    progress = (step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
    return s.base_lr * 0.5 * (1 + float(np.cos(np.pi * progress)))


def _batches(rng: np.random.Generator, images: int, batch_size: int, steps: int):
    """Rows int32 [batch_size] of each step: whole passes in random order, half of them mirrored."""
    passes = -(-steps * batch_size // images)
    order = np.concatenate([rng.permutation(images) for _ in range(passes)])
    mirrored = rng.integers(0, 2, order.size)  # the mirror image of i is row i + images
    rows = (order + images * mirrored).astype(np.int32)
    return rows[: steps * batch_size].reshape(steps, batch_size)


def _chunk_size(settings: ProbeSettings, mesh: Mesh) -> int:
    """Images computed together without gradient: a multiple of the devices."""
    return -(-settings.eval_batch_size // mesh.size) * mesh.size


def _chunks(images: int, size: int) -> np.ndarray:
    """Rows int32 [chunks, size] that visit every image once; the last image fills the end."""
    rows = np.arange(-(-images // size) * size, dtype=np.int32)
    return np.minimum(rows, images - 1).reshape(-1, size)
