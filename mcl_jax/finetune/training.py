"""The training loop: one step after the other, saved now and then, stopped on request.

Shapes: see mcl_jax/finetune/images.py.
"""

import io
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcl_jax import whole_file
from mcl_jax.errors import UserError
from mcl_jax.finetune import images, machine, networks, schedule
from mcl_jax.finetune.job import Job
from mcl_jax.finetune.schedule import Draw
from mcl_jax.finetune.settings import FinetuneSettings

CHECKPOINT = "checkpoint.pth"


@dataclass
class Run:
    """What a training run is at some step.

    Attributes:
      detector, optimizer: as after `step` steps.
      identity: what decides the result; a run goes on only with the same.
      step: steps taken.
      seconds: of training, all processes of the run together.
      losses: rows of (step, learning rate, loss), at every `log_steps`.
    """

    detector: nn.Module
    optimizer: torch.optim.Optimizer
    identity: Mapping[str, Any]
    step: int = 0
    seconds: float = 0.0
    losses: list[list[float]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Writes the checkpoint; whoever is killed meanwhile still has the one before.

        Raises:
          CannotSave: the disk takes no more.
        """
        content = {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "identity": dict(self.identity),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        torch.save(content, buffer := io.BytesIO())  # torch tells a full disk in its own way
        whole_file.write_result(folder / CHECKPOINT, buffer.getbuffer())

    def restore(self, folder: Path) -> bool:
        """Takes the place of the saved run, if there is one.

        Raises:
          UserError: it is another run's, or damaged.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise UserError(f"{path} is damaged ({type(error).__name__}); delete it") from error
        demand_same(content["identity"], self.identity, folder)
        self.detector.load_state_dict(content["detector"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.losses = content["losses"]
        return True


def demand_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    """UserError that names what a saved run was started with and this one was not."""
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if keys:
        text = ", ".join(f"{key} {theirs.get(key)} (now {ours.get(key)})" for key in keys[:4])
        raise UserError(f"{folder} holds another run, with {text}; give another folder")


class StopRequest:
    """SIGTERM and Ctrl-C ask for a stop after the current step."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> "StopRequest":
        self.made = False
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def _note(self, *_: object) -> None:
        self.made = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(run: Run, stream: images.Stream, task: Job, *, workers: int) -> bool:
    """Takes the steps that are left.

    Random numbers are drawn anew for every step, so that a run that goes on after a kill ends with
    the same weights; on a GPU, to the rounding of its sums.

    Returns:
      Whether the last step was taken; False: a stop was asked for, and all is saved.

    Raises:
      UserError: the loss is not finite, or an image cannot be read.
    """
    settings, device = task.settings, next(run.detector.parameters()).device
    if run.step >= settings.steps:
        return True
    start = run.step * settings.batch_size
    loader = images.batches(stream, settings.batch_size, workers, start)
    progress = machine.Progress("step", settings.steps, run.step)
    run.detector.train()
    with StopRequest() as stop:
        for batch in loader:
            began = time.perf_counter()
            if isinstance(batch, UserError):
                raise batch
            loss = take_step(run, batch, settings, device)
            if run.step % task.log_steps == 0 or run.step == settings.steps:
                run.losses.append([run.step, run.optimizer.param_groups[0]["lr"], loss])
            run.seconds += time.perf_counter() - began
            progress.update(run.step, f"loss {loss:.4f}, ")
            last = run.step == settings.steps
            if run.step % task.checkpoint_steps == 0 or last or stop.made:
                run.save(task.folder)
            if stop.made and not last:
                return False
    return True


def take_step(run: Run, batch: list, settings: FinetuneSettings, device: torch.device) -> float:
    """One step of SGD; returns the loss before it."""
    torch.manual_seed(schedule.torch_seed(settings.seed, Draw.STEP, run.step))
    lr = schedule.learning_rate(settings, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    inputs = [image.to(device) for image, _ in batch]
    targets = [{key: x.to(device) for key, x in target.items()} for _, target in batch]
    parts = run.detector(inputs, targets)
    loss = sum(parts.values())
    value = float(loss.detach())
    if not math.isfinite(value):
        text = ", ".join(f"{name} {float(x.detach()):.3g}" for name, x in parts.items())
        raise UserError(
            f"the loss is {value} at step {run.step} ({text}): lower --base_lr, lengthen "
            "--warmup_steps, or set --clip_norm"
        )
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(run.detector.parameters(), settings.clip_norm)
    run.optimizer.step()
    run.step += 1
    return value


def start(detector: nn.Module, settings: FinetuneSettings, identity: Mapping[str, Any]) -> Run:
    """A run that has taken no step."""
    return Run(detector, networks.optimizer(detector, settings), identity)
