"""A run of Detectron2: its configuration, model, checks that need the library, and the training."""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mcl_jax.convert.files.refusals import one_line
from mcl_jax.convert.finetuning import configuration, datasets, packages
from mcl_jax.convert.finetuning.task import Task
from mcl_jax.errors import UserError
from mcl_jax.paths import on_disk

LAST = "last_checkpoint"  # Detectron2's file in OUTPUT_DIR that names the newest checkpoint
EXTRA_NORM = "Res5ROIHeadsExtraNorm"


def defaults() -> dict[str, Any]:
    """The installed Detectron2's settings, flat."""
    from detectron2.config import get_cfg

    return configuration.leaves(get_cfg())


def configured(task: Task) -> Any:
    """The frozen configuration of a run, with everything registered that it names.

    Raises:
      UserError: Detectron2 refuses it, or a subset is missing.
    """
    from detectron2.config import get_cfg

    register_heads()
    packages.lend_public_names()
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(task.config))
        cfg.merge_from_list(["MODEL.WEIGHTS", task.source, *task.options])
    except Exception as error:  # yacs raises several kinds
        raise UserError(f"{task.config}: Detectron2 refuses it: {one_line(error)}") from error
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    datasets.register_subsets(cfg.DATASETS.TRAIN, task.subsets)
    cfg.freeze()
    return cfg


def register_heads() -> None:
    """Makes the C4 head of the papers known: one more norm behind res5 (He et al., 2020)."""
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    if EXTRA_NORM in ROI_HEADS_REGISTRY:
        return

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """C4 with a norm behind res5."""

        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape)
            channels = self.res5[-1].out_channels
            self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))

    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def model_shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the model that the configuration builds, which is thrown away.

    Raises:
      UserError: Detectron2 cannot build it.
    """
    from detectron2.modeling import build_model

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        model = build_model(cfg)
    except Exception as error:  # Detectron2 raises many kinds, in many places
        words = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"Detectron2 cannot build the model of this configuration ({words})"
        ) from error
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


def goes_on_from(cfg: Any) -> Path | None:
    """The checkpoint that --resume would take; None where OUTPUT_DIR has none.

    Raises:
      UserError: the file that names it names one that is gone.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not (folder / LAST).is_file():
        return None
    checkpoint = folder / (folder / LAST).read_text(encoding="utf-8").strip()
    if not checkpoint.is_file():
        raise UserError(
            f"{folder / LAST} names {checkpoint.name}, which is not there: write the name of another "
            "checkpoint into it, or leave out --resume"
        )
    return checkpoint


def demand_output(cfg: Any) -> None:
    """Makes OUTPUT_DIR; UserError where that cannot be or nothing can be written."""
    on_disk(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        writable = os.access(cfg.OUTPUT_DIR, os.W_OK)
        reason = "no permission to write"
    except OSError as error:
        writable, reason = False, error.strerror
    if not writable:
        raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be written to: {reason}")


def machine_problem(cfg: Any, task: Task) -> str | None:
    """Why this machine cannot do the run, in words."""
    import torch

    count, gpus = task.num_gpus, torch.cuda.device_count()
    if cfg.MODEL.DEVICE == "cpu":
        if count > 1:
            return f"--num-gpus {count} with MODEL.DEVICE cpu: give --num-gpus 1"
    elif str(cfg.MODEL.DEVICE).startswith("cuda") and gpus < count:
        other = "MODEL.DEVICE cpu runs without, slowly" if not gpus else f"give --num-gpus {gpus}"
        return f"--num-gpus {count}: torch {torch.__version__} finds {gpus} GPUs here; {other}"
    return None


def demand_batch(cfg: Any, task: Task) -> None:
    """UserError where a batch cannot be shared out evenly."""
    images = cfg.SOLVER.IMS_PER_BATCH
    if not cfg.SOLVER.REFERENCE_WORLD_SIZE and (images < 1 or images % task.num_gpus):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {images} must be a multiple of --num-gpus {task.num_gpus}"
        )


def work(task: Task, lines: Iterable[str]) -> None:
    """One process of Detectron2's training or evaluation.

    Args:
      task: the command line.
      lines: for the log, what was found out before.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import DefaultTrainer, default_setup

    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
            return datasets.evaluator(dataset_name, folder)

    cfg = configured(task)
    default_setup(cfg, task)
    for line in lines:
        logging.getLogger("detectron2").info(line)
    if task.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=task.resume)
        Trainer.test(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=task.resume)
    trainer.train()
