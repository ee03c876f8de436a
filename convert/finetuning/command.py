"""Everything that can be wrong with a fine-tuning, before it starts; then it starts.

`--check` and the real run go the same way, so they say the same.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import importlib
import importlib.util
from typing import Any

from mcl_jax.convert.checks import detectron2_check
from mcl_jax.convert.finetuning import configuration, datasets, expected, library, traps
from mcl_jax.convert.finetuning.task import Task
from mcl_jax.errors import UserError

INSTALL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
CONTROL_DEPTH = 50


def run(task: Task) -> None:
    """Checks a task, and does it unless it is a `--check`.

    Raises:
      UserError: in one line, whatever the user can mend.
    """
    reason = missing_library()
    if reason and not task.check:
        check_files(task)
        raise UserError(f"Detectron2 is not installed ({reason}); see {INSTALL}")
    lines = check_files(task, reason) if reason else check_all(task)
    if task.check:
        return
    from detectron2.engine import launch

    launch(library.work, task.num_gpus, dist_url="auto", args=(task, lines))


def missing_library() -> str | None:
    """Why Detectron2 cannot be imported; None if it can."""
    try:
        for name in ("config", "data", "engine", "evaluation", "checkpoint", "modeling"):
            importlib.import_module(f"detectron2.{name}")
    except ImportError as error:
        return str(error)
    return None


def check_files(task: Task, reason: str | None = None) -> list[str]:
    """What can be said without Detectron2, printed."""
    settings = configuration.read(task.config, task.options)
    lines = _say(head(task, settings))
    model = expected.parts(settings)
    held = read_weights(task, settings, lines)
    if held and model is None:
        lines += _say(
            [f"{settings['MODEL.BACKBONE.NAME']}: what it takes is seen only by Detectron2"]
        )
    elif held:
        lines += _say(detectron2_check.loaded(model, held))
    if reason:
        lines += _say([f"without Detectron2 ({reason}): its model, data and evaluators unseen"])
    return lines


def check_all(task: Task) -> list[str]:
    """What is found out with Detectron2, printed; the model's parameters are those it builds."""
    settings = configuration.read(task.config, task.options, library.defaults())
    lines = _say(head(task, settings))
    cfg = library.configured(task)
    model = library.model_shapes(cfg)
    checkpoint = library.goes_on_from(cfg) if task.resume else None
    if checkpoint is not None:
        lines += _say([f"goes on from {checkpoint}; {task.source or 'random weights'} is not read"])
    else:
        if task.resume:
            lines += _say([f"nothing to go on from in {cfg.OUTPUT_DIR}: starts from the beginning"])
        held = read_weights(task, settings, lines)
        if held:
            lines += _say(detectron2_check.loaded(model, held))
    names = cfg.DATASETS.TEST if task.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    datasets.demand_known(names)
    datasets.demand_readers(names)
    datasets.demand_evaluators(cfg.DATASETS.TEST)
    datasets.demand_files(names)
    library.demand_batch(cfg, task)
    problem = library.machine_problem(cfg, task)
    if problem and task.check:  # it may be for another machine
        lines += _say([f"WARNING: {problem}"])
    elif problem:
        raise UserError(problem)
    if not task.check:
        library.demand_output(cfg)
    return lines


def head(task: Task, settings: dict[str, Any]) -> list[str]:
    """The run in one line."""
    iterations, images = settings["SOLVER.MAX_ITER"], settings["SOLVER.IMS_PER_BATCH"]
    return [f"{task.config}: {iterations} iterations of {images}"]


def read_weights(
    task: Task, settings: dict[str, Any], lines: list[str]
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the file, and the traps that it makes of the configuration, printed.

    Raises:
      UserError: the file cannot be used, or the control is another network.
    """
    if task.weights is None:
        depth = settings["MODEL.RESNETS.DEPTH"]
        if task.control == "supervised" and depth != CONTROL_DEPTH:
            raise UserError(f"--control supervised is a ResNet-50, MODEL.RESNETS.DEPTH is {depth}")
        lines += _say([f"WARNING: {trap}" for trap in traps.find(settings, traps.CONTROL)])
        return {}
    shapes, words = detectron2_check.read_weights(task.weights)
    warnings = traps.find(settings, traps.holding(shapes))
    lines += _say([f"WARNING: {trap}" for trap in warnings] + words)
    return shapes


def _say(lines: list[str]) -> list[str]:
    for line in lines:
        print(line, flush=True)
    return lines
