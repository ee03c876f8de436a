"""One train step of the authors' computation in torch, from finished montages, on CPU or GPU.

Shapes: canvases [2, n, 3, H, H] (sides q and k; n canvases a side, ordered by level), labels per
level [2, tiles]. On a GPU the networks run under autocast to bfloat16, channels last, with cuDNN's
benchmark mode: what a user of torch would switch on.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcl_jax.bench import torch_mcl

LAYOUT = torch.channels_last


@dataclass(frozen=True)
class Task:
    """What torch starts from.

    Attributes:
      weights: arrays under the authors' names, in torch's layouts; both networks.
      canvases: float32 [2, n, 3, H, H].
      labels: per level int [2, tiles], numbers of images.
      counts: canvases of a side per level.
      options: 'batch_size', 'level_weights', 'temperature', 'lr', 'trust_coefficient', 'momentum',
        'weight_decay', 'clip_norm', 'ema'.
    """

    weights: Mapping[str, np.ndarray]
    canvases: np.ndarray
    labels: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    options: Mapping[str, Any]

    def save(self, path: Path) -> None:
        arrays = {f"weight {name}": value for name, value in self.weights.items()}
        arrays |= {f"label {level}": value for level, value in enumerate(self.labels)}
        scalars = json.dumps({"counts": self.counts, "options": dict(self.options)})
        np.savez(path, canvases=self.canvases, scalars=np.array(scalars), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Task":
        with np.load(path) as file:
            scalars = json.loads(str(file["scalars"]))
            counts = tuple(scalars["counts"])
            weights = {n[7:]: file[n] for n in file.files if n.startswith("weight ")}
            labels = tuple(file[f"label {level}"] for level in range(len(counts)))
            return cls(weights, file["canvases"], labels, counts, scalars["options"])

    def halved(self) -> "Task":
        """The same amount of work for half as many images: for a card that is too small for all.

        The first half of every level's canvases, with image numbers that fit: the shapes are those
        of a batch of half the size, the loss is none.

        Raises:
          ValueError: if a level has an odd number of canvases.
        """
        if any(count % 2 for count in self.counts):
            raise ValueError(f"canvases per level {self.counts} cannot be halved")
        starts = np.cumsum((0, *self.counts))
        halves = [np.arange(s, s + c // 2) for s, c in zip(starts, self.counts, strict=False)]
        batch = self.options["batch_size"] // 2
        return Task(
            self.weights,
            self.canvases[:, np.concatenate(halves)],
            labels=tuple(level[:, : level.shape[1] // 2] % batch for level in self.labels),
            counts=tuple(count // 2 for count in self.counts),
            options={**self.options, "batch_size": batch},
        )


def step_function(task: Task, device: str) -> Callable[[], float]:
    """A function that does one step (forward, backward, LARS, EMA) and returns the loss.

    Args:
      task: what to start from.
      device: 'cpu' in float32, or 'cuda' under autocast to bfloat16.
    """
    torch.backends.cudnn.benchmark = True
    options, buffers = task.options, {}
    sides = [
        torch.tensor(side, device=device).contiguous(memory_format=LAYOUT) for side in task.canvases
    ]
    labels = [torch.tensor(level, dtype=torch.long, device=device) for level in task.labels]
    weights = torch_mcl.from_names(task.weights, memory_format=LAYOUT, device=device)

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = torch_mcl.loss(
                weights,
                sides,
                labels=labels,
                counts=task.counts,
                level_weights=options["level_weights"],
                temperature=options["temperature"],
            )
        torch_mcl.lars_step(
            weights,
            torch_mcl.gradients(weights, loss),
            buffers,
            lr=options["lr"],
            eta=options["trust_coefficient"],
            momentum=options["momentum"],
            decay=options["weight_decay"],
            clip=options["clip_norm"],
            excluded=lambda name: weights[name].ndim == 1,
        )
        torch_mcl.ema_step(weights, options["ema"])
        return loss.item()

    return step


def time_alone(task: Task, device: str, *, warm_up: int, steps: int) -> dict[str, Any]:
    """Times steps in a process that has the device alone; halves a batch that does not fit.

    Args:
      device: see `step_function`.
      warm_up: steps that are not timed.
      steps: that are.

    Returns:
      {'seconds': median, 'first_loss': None where the batch was halved, 'batch_size', 'images_per_s',
      'peak_bytes': of tensors, 'reserved_bytes': of torch's allocator, both None on a CPU, 'device',
      'torch'}.

    Raises:
      torch.OutOfMemoryError: if no half fits either.
    """
    full_batch, on_gpu = task.options["batch_size"], device == "cuda"
    while True:
        try:
            losses, seconds = _timed(task, device, warm_up + steps)
            break
        except torch.OutOfMemoryError:
            if any(count % 2 for count in task.counts):
                raise
        # outside of the handler, which would keep the failed step's tensors alive
        task = task.halved()
        torch.cuda.empty_cache()
    median, batch = float(np.median(seconds[warm_up:])), task.options["batch_size"]
    return {
        "seconds": median,
        "first_loss": losses[0] if batch == full_batch else None,
        "finite": bool(np.isfinite(losses).all()),
        "batch_size": batch,
        "images_per_s": batch / median,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def _timed(task: Task, device: str, steps: int) -> tuple[list[float], list[float]]:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step, losses, seconds = step_function(task, device), [], []
    for _ in range(steps):
        wait()
        start = time.perf_counter()
        losses.append(step())
        wait()
        seconds.append(time.perf_counter() - start)
    return losses, seconds
