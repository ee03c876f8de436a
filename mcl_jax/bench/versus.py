"""Our train step against a plain torch implementation of the authors' computation, side by side.

The torch side gets what the authors' loader would hand it, finished montages, and computes all four
pyramid levels on every canvas, eagerly, channels last, then LARS and EMA. Ours starts from uint8
canvases: augmentation and montage are in its time and not in torch's. Both start from the same
weights, see the same montages at the first step, and run on all cores that the process may use.
"""

import ctypes
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np
import torch

from mcl_jax import program, sharding
from mcl_jax.bench import torch_mcl
from mcl_jax.convert.names import architectures
from mcl_jax.convert.names.views import NETWORKS
from mcl_jax.convert.targets import authors
from mcl_jax.errors import UserError
from mcl_jax.objectives.build import compute_dtype
from mcl_jax.objectives.mcl import SIDES

# Steps of each that are not timed: the first compiles and autotunes, the next still get new pages.
WARM_UP = 3
# glibc's mallopt options and what they are set to (mallopt(3)): one heap that is never given back.
ONE_HEAP = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> bool:
    """Lets malloc keep what a step frees; to be called before any thread starts.

    Otherwise every step of ours that follows one of torch's pays for new pages: 3.7 s against 2.4 s
    for R50 at 64 px, B = 32, 2.5 s of it in the kernel. True where the C library is glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*pair) for pair in ONE_HEAP.values())


def compare(config: Any, steps: int) -> dict[str, Any]:
    """Times both alternately.

    Args:
      config: of MCL in the authors' configuration; either pyramid mode.
      steps: timed steps of each, after WARM_UP of each.

    Returns:
      {'ratio': torch seconds / ours, 'seconds', 'torch_seconds': medians, ...}.

    Raises:
      UserError: for a configuration that is not the authors', or not one CPU device in float32.
    """
    run = program.build(config, sharding.mesh_for(config), images=config.data.batch_size)
    needed = {
        "method": (config.method, "mcl"),
        "model.neck": (config.model.neck, "fpn"),
        "montage.assembly": (config.montage.assembly, "montage"),
        "montage.levels": (config.montage.levels, 4),
        "loss.matching": (config.loss.matching, "a"),
        "optimizer.name": (config.optimizer.name, "lars"),
        "optimizer.micro_batches": (config.optimizer.micro_batches, 1),
        "devices": (run.mesh.size, 1),
        "platform": (jax.default_backend(), "cpu"),
        "compute dtype": (np.dtype(compute_dtype(config.numerics.compute_dtype)).name, "float32"),
    }
    for name, (found, wanted) in needed.items():
        if found != wanted:
            raise UserError(
                f"--versus-torch compares what the authors compute: {name} has to be {wanted}, "
                f"is {found}"
            )
    architectures.demand_resnet(run.objective.architecture, "the authors' code")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    state = program.new_state(run)
    batch = program.random_batch(run)
    theirs = _torch_step(run, jax.device_get(state), batch)
    ours = _our_step(run, state, batch)
    seconds: dict[str, list[float]] = {"ours": [], "torch": []}
    losses: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(WARM_UP + steps):
        for name, step in (("torch", theirs), ("ours", ours)):
            start = time.perf_counter()
            losses[name].append(step())
            seconds[name].append(time.perf_counter() - start)
    if not np.isfinite([*losses["ours"], *losses["torch"]]).all():
        raise UserError(f"a loss is not finite: {losses}")
    mine, torchs = (median(seconds[name][WARM_UP:]) for name in ("ours", "torch"))
    return {
        "ratio": torchs / mine,
        "seconds": mine,
        "torch_seconds": torchs,
        "steps": steps,
        "threads": threads,
        "pyramid": config.loss.pyramid,
        "batch_size": config.data.batch_size,
        "image_size": config.data.image_size,
        "first_loss": losses["ours"][0],
        "torch_first_loss": losses["torch"][0],
        "torch": torch.__version__,
        "jax": jax.__version__,
    }


def _our_step(run: program.Program, state: Any, batch: Any) -> Callable[[], float]:
    compiled, seed = program.lower_step(run).compile(), program.seed_argument(run)
    placed = sharding.put_batch(batch, run.mesh)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed, seed)
        return float(metrics["loss"])

    return step


def _torch_step(run: program.Program, state: Any, batch: Any) -> Callable[[], float]:
    objective, config = run.objective, run.config
    inputs = jax.jit(objective.inputs)(program.seed_argument(run), 0, batch, 0)
    canvases = np.asarray(inputs.canvases, np.float32)
    canvases = canvases.reshape(SIDES, -1, *canvases.shape[1:]).transpose(0, 1, 4, 2, 3)
    layout = torch.channels_last
    sides = [torch.tensor(side).contiguous(memory_format=layout) for side in canvases]
    labels = [torch.tensor(np.asarray(level), dtype=torch.long) for level in inputs.labels]
    arrays = {field: getattr(state, field) for field in NETWORKS}
    view = authors.view(objective.architecture, objective.layout.levels)
    names = view.to_file(arrays, "the state")
    weights = torch_mcl.from_names(names, memory_format=layout)
    options, buffers = config["optimizer"], {}

    def step() -> float:
        loss = torch_mcl.loss(
            weights,
            sides,
            labels,
            objective.counts,
            config["loss"]["level_weights"],
            config["loss"]["temperature"],
        )
        torch_mcl.lars_step(
            weights,
            torch_mcl.gradients(weights, loss),
            buffers,
            lr=float(run.lr(0)),
            eta=options["trust_coefficient"],
            momentum=options["momentum"],
            decay=options["weight_decay"],
            clip=options["clip_norm"],
            excluded=lambda name: weights[name].ndim == 1,
        )
        torch_mcl.ema_step(weights, config["ema"]["base"])
        return loss.item()

    return step
