"""Our train step against a plain torch implementation of the authors' computation, side by side.

The torch side gets what the authors' loader would hand it, finished montages, and computes all four
pyramid levels on every canvas, eagerly, channels last, then LARS and EMA. Ours starts from uint8
canvases: augmentation and montage are in its time and not in torch's. Both start from the same
weights and see the same montages at the first step.

On a CPU both run in float32 on all cores that the process may use, alternately in one process. On a
GPU ours runs in bfloat16 and torch under autocast, one after the other in processes of their own:
JAX's allocator does not give memory back to the card, so a shared process would measure how the
two share memory, and at B = 256 torch needs nearly all of it. See `turns`.
"""

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util

from mcl_jax import program, sharding
from mcl_jax.bench import torch_side, turns
from mcl_jax.errors import UserError
from mcl_jax.objectives.build import compute_dtype
from mcl_jax.objectives.mcl import SIDES

# Steps of each that are not timed: the first compiles and autotunes, the next still get new pages.
WARM_UP = 3
# glibc's mallopt options and what they are set to (mallopt(3)): one heap that is never given back.
ONE_HEAP = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
# What each platform computes in.
DTYPES = {"cpu": "float32", "gpu": "bfloat16"}
# Axes of our arrays by number of dimensions: HWIO -> OIHW, [in, out] -> [out, in].
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def keep_freed_memory() -> bool:
    """Lets malloc keep what a step frees; to be called before any thread starts.

    Otherwise every step of ours that follows one of torch's pays for new pages: 3.7 s against 2.4 s
    for R50 at 64 px, B = 32, 2.5 s of it in the kernel. True where the C library is glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*pair) for pair in ONE_HEAP.values())


def compare(config: Mapping[str, Any], names: Mapping[str, str], steps: int) -> dict[str, Any]:
    """Times both on the CPU, alternately, or on the GPU, in turn.

    Args:
      config: of MCL in the authors' configuration; either pyramid mode.
      names: the authors' name of an array -> its path in the state, 'params/encoder/...'.
      steps: timed steps of each, after WARM_UP of each.

    Returns:
      {'ratio': images/s of ours over torch's, 'seconds', 'torch_seconds': medians, ...}; on a GPU
      also both sides' images/s and peak memory, and our share of the card's peak.

    Raises:
      UserError: for a configuration that is not the authors', or not one device in the platform's
        dtype.
    """
    run = program.build(config, sharding.mesh_for(config), images=config["data"]["batch_size"])
    _check(run)
    about = {
        "steps": steps,
        "pyramid": config["loss"]["pyramid"],
        "image_size": config["data"]["image_size"],
        "jax": jax.__version__,
    }
    if jax.default_backend() == "cpu":
        return _alternately(run, names, steps) | about
    plain = program.plain_config(config)
    return turns.compare(plain, names, warm_up=WARM_UP, steps=steps) | about


def _check(run: program.Program) -> None:
    """UserError where the run is not what the authors compute."""
    config, platform = run.config, jax.default_backend()
    if platform not in DTYPES:
        raise UserError(f"--versus-torch runs on {' or '.join(DTYPES)}, not on {platform}")
    requirements = {
        "method": (config["method"], "mcl"),
        "model.neck": (config["model"]["neck"], "fpn"),
        "montage.assembly": (config["montage"]["assembly"], "montage"),
        "montage.levels": (config["montage"]["levels"], 4),
        "loss.matching": (config["loss"]["matching"], "a"),
        "optimizer.name": (config["optimizer"]["name"], "lars"),
        "optimizer.micro_batches": (config["optimizer"]["micro_batches"], 1),
        "devices": (run.mesh.size, 1),
        "compute dtype": (
            np.dtype(compute_dtype(config["numerics"]["compute_dtype"])).name,
            DTYPES[platform],
        ),
    }
    for name, (value, requirement) in requirements.items():
        if value != requirement:
            raise UserError(
                f"--versus-torch compares what the authors compute: {name} has to be {requirement}, "
                f"is {value}"
            )


def _alternately(run: program.Program, names: Mapping[str, str], steps: int) -> dict[str, Any]:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    state = program.new_state(run)
    batch = program.random_batch(run)
    theirs = torch_side.step_function(torch_task(run, state, batch=batch, names=names), "cpu")
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
        "threads": threads,
        "batch_size": run.config["data"]["batch_size"],
        "first_loss": losses["ours"][0],
        "torch_first_loss": losses["torch"][0],
        "torch": torch.__version__,
    }


def _our_step(run: program.Program, state: Any, batch: Any) -> Callable[[], float]:
    compiled, seed = program.lower_step(run).compile(), program.seed_argument(run)
    placed = sharding.put_batch(batch, run.mesh)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, placed, seed)
        return float(metrics["loss"])

    return step


def torch_task(
    run: program.Program, state: Any, batch: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> torch_side.Task:
    """What torch starts from: our weights under the authors' names, and step 0's montages."""
    inputs = jax.jit(run.objective.inputs)(program.seed_argument(run), 0, batch, 0)
    canvases = np.asarray(inputs.canvases, np.float32)
    canvases = canvases.reshape(SIDES, -1, *canvases.shape[1:]).transpose(0, 1, 4, 2, 3)
    fields = {name.partition("/")[0] for name in names.values()}
    trees = {field: jax.device_get(getattr(state, field)) for field in fields}
    arrays = traverse_util.flatten_dict(trees, sep="/")
    weights = {name: _to_torch(arrays[path]) for name, path in names.items()}
    optimizer, loss = run.config["optimizer"], run.config["loss"]
    options = {
        "batch_size": run.config["data"]["batch_size"],
        "level_weights": tuple(loss["level_weights"]),
        "temperature": loss["temperature"],
        "lr": float(run.lr(0)),
        "ema": run.config["ema"]["base"],
    }
    names = ("trust_coefficient", "momentum", "weight_decay", "clip_norm")
    options |= {name: optimizer[name] for name in names}
    labels = tuple(np.asarray(level) for level in inputs.labels)
    return torch_side.Task(
        weights, canvases, labels=labels, counts=tuple(run.objective.counts), options=options
    )


def _to_torch(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(TO_TORCH[array.ndim]))
