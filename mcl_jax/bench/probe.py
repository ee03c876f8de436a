"""What the detection probe adds to its network's own forward and backward pass.

Shapes: B images of a batch, H their side in px.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mcl_jax.evaluate.detection import probe, report, training
from mcl_jax.evaluate.detection.boxed_images import BoxedSet
from mcl_jax.evaluate.detection.boxed_sources import BoxedRecord
from mcl_jax.evaluate.detection.data import ProbeData
from mcl_jax.evaluate.detection.detector import PARTS
from mcl_jax.evaluate.detection.functions import Functions, compiled
from mcl_jax.keys import Purpose, key_for


class Noise:
    """JPEGs of noise, H px a side, with three boxes each."""

    class_names = ("a", "b", "c", "d", "e")

    def __init__(self, count: int, image_size: int):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (image_size, image_size, 3), np.uint8)
        self._data = cv2.imencode(".jpg", pixels)[1].tobytes()
        corners = rng.uniform(0, 0.6, (count, 3, 2))
        sizes = rng.uniform(0.1, 0.4, (count, 3, 2))
        self._boxes = np.concatenate([corners, corners + sizes], -1).astype(np.float32)

    def __len__(self) -> int:
        return len(self._boxes)

    def __getitem__(self, index: int) -> BoxedRecord:
        labels = np.arange(3, dtype=np.int32)
        return BoxedRecord(
            self._data, self._boxes[index], labels=labels, ignored=labels < 0, name=f"noise {index}"
        )


def compare(config: Mapping[str, Any], mode: str, steps: int, mesh: Mesh) -> dict[str, Any]:
    """Times the probe and the bare network in turns, with random weights, on images of noise.

    Args:
      config: as configs/base.py; `model`, `numerics`, `augment` and `probe` are read.
      mode: of `probe.MODES` without the FPN's, which takes weights that there are not.
      steps: timed batches of each, after one that compiles.
      mesh: devices to run on.

    Returns:
      images/s and process CPU seconds per image: 'train' (reading, targets, loss, optimizer) and
      'forward_backward' (the network alone, frozen parts forward); 'test' (reading, detections)
      and 'forward'; 'train_adds' and 'test_adds': share of the network's CPU time that comes on top.
    """
    subject = report.untrained(config)
    encoder = report.encoder_of(config)
    size, batch = config["probe"]["image_size"], config["probe"]["batch_size"]
    noise = Noise(4 * batch, size)
    images = BoxedSet(noise, range(len(noise)), size, cache_bytes=10**9, max_unreadable=0.0)
    prepared = probe.prepare(
        config, encoder.architecture, encoder.numerics, subject.variables,
        mode=mode, seed=0, data=ProbeData(images, images),
    )  # fmt: skip
    pieces = _pieces(prepared, compiled(prepared.detector, mesh))
    seconds = {name: [] for name in pieces}
    for turn in range(steps + 1):
        for name, piece in pieces.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(piece(turn))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    result: dict[str, Any] = {"mode": mode}
    medians = {name: np.median(values[1:], axis=0) / batch for name, values in seconds.items()}
    for name, (wall, cpu) in medians.items():
        result[name] = {"images_per_s": float(1 / wall), "cpu_s_per_image": float(cpu)}
    for name, bare in (("train", "forward_backward"), ("test", "forward")):
        result[f"{name}_adds"] = float(medians[name][1] / medians[bare][1] - 1)
    return result


def _pieces(prepared: probe.Prepared, functions: Functions) -> dict[str, Callable[[int], Any]]:
    """name -> what is timed, a function of the turn."""
    detector, settings = prepared.detector, prepared.detector.settings
    missing = tuple(part for part in PARTS if part not in prepared.by_part)
    variables = dict(prepared.by_part) | functions.initial(key_for(0, 0, 0, Purpose.PROBE), missing)
    variables = functions.replicate(variables)
    frozen = {part: v for part, v in variables.items() if part not in detector.trained}
    trained = {part: variables[part] for part in detector.trained}
    memory = functions.optimizer.init({part: v["params"] for part, v in trained.items()})
    # Copies, for a step takes over the memory of its arguments.
    state = [functions.replicate(trained), functions.replicate(memory)]
    feed = training.Feed(
        detector, functions, frozen=frozen, data=prepared.train, seed=0, conduct=training.Conduct()
    )
    inputs, _ = feed.placed(0, *feed.read(np.arange(settings.batch_size)))
    side = settings.image_size
    bare = functions.split(np.zeros((settings.batch_size, side, side, 3), np.float32))

    def rows(turn: int) -> np.ndarray:
        return (np.arange(settings.batch_size) + turn) % len(prepared.train)

    def train(turn: int):
        batch_inputs, targets = feed.placed(turn, *feed.read(rows(turn)))
        *state[:], loss = functions.step(*state, frozen, batch_inputs, targets, np.float32(1e-3))
        return loss

    def test(turn: int):
        batch = prepared.test.read(rows(turn))
        images, extents = functions.split((batch.images, batch.extents))
        return functions.predict(trained, frozen, images, extents)

    def outputs(params, frozen, batch_inputs, *, train):
        variables = {part: v | {"params": params[part]} for part, v in trained.items()}
        x = batch_inputs["features"] if "features" in batch_inputs else batch_inputs["x"]
        if "x" in batch_inputs and frozen:
            parts = tuple(part for part in PARTS if part in frozen)
            x, _ = detector.run(parts, frozen, x, train=False)
        return detector.run(detector.trained, variables, x, train=train)[0]

    params = {part: v["params"] for part, v in trained.items()}
    forward = jax.jit(
        lambda params, frozen, batch_inputs: outputs(params, frozen, batch_inputs, train=False)
    )
    backward = jax.jit(
        jax.grad(
            lambda params, frozen, batch_inputs: sum(
                jnp.mean(x) for x in outputs(params, frozen, batch_inputs, train=True)
            )
        )
    )
    bare_inputs = inputs if "features" in inputs else {"x": bare}
    return {
        "train": train,
        "forward_backward": lambda turn: backward(params, frozen, bare_inputs),
        "test": test,
        "forward": lambda turn: forward(params, frozen, {"x": bare}),
    }
