"""Fine-tunes a detector in Detectron2 from exported weights, or runs one of the controls.

python scripts/finetune_detectron2.py configs/detectron2/coco_mask_rcnn_fpn_1x.yaml \\
    --weights exported/mcl_resnet50.pkl --num-gpus 8 OUTPUT_DIR runs/coco_1x

Detectron2 is installed by its own instructions (docs/transfer.md); this script needs no JAX. With
--check it only looks at configuration and weights, and needs no Detectron2 either.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Detectron2's environment lacks us

from mcl_jax.convert.checks import detectron2_check  # noqa: E402
from mcl_jax.errors import UserError  # noqa: E402

SUPERVISED = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"  # RGB, stride in the 3x3
INSTALL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML, e.g. one of configs/detectron2")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="an export (.pkl), or model_final.pth")
    source.add_argument(
        "--control", choices=("supervised", "random"), help="the run to compare with"
    )
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--check", action="store_true", help="look at configuration and weights")
    parser.add_argument(
        "--subsets", type=Path, help="folder of scripts/coco_subset.py, for the low-data rows"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE ... of Detectron2")
    return parser.parse_intermixed_args()


def check(options: argparse.Namespace) -> None:
    """Prints what is wrong with the configuration and what the file holds."""
    config = detectron2_check.read_config(options.config)
    solver = config.get("SOLVER", {})
    print(f"{options.config}: {solver.get('MAX_ITER')} iterations of {solver.get('IMS_PER_BATCH')}")
    for trap in detectron2_check.traps(config):
        print(f"WARNING: {trap}")
    if options.weights:
        print("\n".join(detectron2_check.read_weights(options.weights)[1]))


def train(options: argparse.Namespace) -> None:
    """One process of Detectron2's training."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.data import MetadataCatalog
    from detectron2.engine import DefaultTrainer, default_setup
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """C4 with a norm behind res5 (He et al., 2020)."""

        def __init__(self, cfg, input_shape):
            super().__init__(cfg, input_shape)
            channels = self.res5[-1].out_channels
            self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))

    if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)

    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
            return evaluator(
                MetadataCatalog.get(dataset_name).evaluator_type, dataset_name, cfg, folder
            )

    cfg = get_cfg()
    cfg.merge_from_file(str(options.config))
    weights = {"supervised": SUPERVISED, "random": "", None: str(options.weights)}
    cfg.merge_from_list(["MODEL.WEIGHTS", weights[options.control], *options.opts])
    register_subsets(cfg, options.subsets)
    cfg.freeze()
    default_setup(cfg, options)
    if options.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=options.resume
        )
        Trainer.test(cfg, model)
        return
    trainer = Trainer(cfg)
    if options.weights and not options.resume:
        model = {name: tuple(x.shape) for name, x in trainer.model.state_dict().items()}
        model = {name.removeprefix("module."): shape for name, shape in model.items()}
        shapes, _ = detectron2_check.read_weights(options.weights)
        print("\n".join(detectron2_check.loaded(model, shapes)))
    trainer.resume_or_load(resume=options.resume)
    trainer.train()


def evaluator(kind: str, name: str, cfg, folder: str):
    """What measures a data set of this kind."""
    from detectron2 import evaluation

    if kind == "coco":
        return evaluation.COCOEvaluator(name, output_dir=folder)
    if kind == "lvis":
        return evaluation.LVISEvaluator(name, output_dir=folder)
    if kind == "pascal_voc":
        return evaluation.PascalVOCDetectionEvaluator(name)
    if kind == "cityscapes_instance":
        return evaluation.CityscapesInstanceEvaluator(name)
    if kind == "cityscapes_sem_seg":
        return evaluation.CityscapesSemSegEvaluator(name)
    raise UserError(f"no evaluator for {name}: its metadata say {kind!r}")


def register_subsets(cfg, folder: Path | None) -> None:
    """Makes coco_2017_train_Npercent of DATASETS.TRAIN known, from scripts/coco_subset.py's files."""
    import os

    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    for name in cfg.DATASETS.TRAIN:
        if not name.endswith("percent"):
            continue
        share = name.rsplit("_", 1)[1]
        path = (folder or root / "annotations") / f"instances_train2017_{share}.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; scripts/coco_subset.py makes it (--subsets)")
        metadata = _get_builtin_metadata("coco")
        register_coco_instances(name, metadata, str(path), str(root / "train2017"))


def main() -> None:
    options = parse()
    try:
        check(options)
        if options.check:
            return
        try:
            from detectron2.engine import launch
        except ImportError as error:
            raise UserError(f"Detectron2 is not installed ({error}); see {INSTALL}") from error
        launch(train, options.num_gpus, dist_url="auto", args=(options,))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
