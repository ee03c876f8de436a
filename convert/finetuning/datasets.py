"""The data sets of a configuration: those of Detectron2, the low-data subsets, what measures them."""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import difflib
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

from mcl_jax.convert.finetuning import packages
from mcl_jax.errors import UserError

VARIABLE = "DETECTRON2_DATASETS"
# Kind of a data set, by its metadata -> the package beside Detectron2 that measures it.
PACKAGES = {
    "coco": "pycocotools",
    "lvis": "lvis",
    "pascal_voc": None,
    "cityscapes_instance": packages.PUBLIC,
    "cityscapes_sem_seg": packages.PUBLIC,
}
UNMEASURED = "; DATASETS.TEST '()' trains without measuring"
# Kind -> Detectron2's module that reads it.
READERS = {
    "coco": "coco",
    "lvis": "lvis",
    "pascal_voc": "pascal_voc",
    "cityscapes_instance": "cityscapes",
    "cityscapes_sem_seg": "cityscapes",
}
# Metadata that are files or folders.
PLACES = ("json_file", "image_root", "image_dir", "gt_dir", "dirname", "panoptic_root")
PLACES += ("panoptic_json", "sem_seg_root")


def root() -> Path:
    """Where Detectron2 looks for data sets."""
    return Path(os.environ.get(VARIABLE, "datasets")).expanduser()


def register_subsets(names: tuple[str, ...], folder: Path | None) -> None:
    """Makes coco_2017_train_Npercent of DATASETS.TRAIN known, from mcl-jax coco-subset's files.

    Args:
      names: of DATASETS.TRAIN.
      folder: of the files; None: COCO's own annotations.

    Raises:
      UserError: the file is not there.
    """
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

    coco = root() / "coco"
    for name in names:
        if not name.startswith("coco_2017_train_") or not name.endswith("percent"):
            continue
        if name in DatasetCatalog.list():
            continue
        share = name.rsplit("_", 1)[1]
        path = (folder or coco / "annotations") / f"instances_train2017_{share}.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; mcl-jax coco-subset makes it (--subsets)")
        metadata = _get_builtin_metadata("coco")
        register_coco_instances(name, metadata, str(path), str(coco / "train2017"))


def demand_known(names: tuple[str, ...]) -> None:
    """UserError for a data set that Detectron2 does not have."""
    from detectron2.data import DatasetCatalog

    catalog = DatasetCatalog.list()
    for name in names:
        if name not in catalog:
            near = difflib.get_close_matches(str(name), catalog, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(catalog[:4])}, ..."
            raise UserError(f"Detectron2 has no data set {name!r} (DATASETS); {hint}")


def demand_files(names: tuple[str, ...]) -> None:
    """UserError for a data set whose files are not where Detectron2 looks for them."""
    from detectron2.data import MetadataCatalog

    for name in names:
        metadata = MetadataCatalog.get(name).as_dict()
        for key in PLACES:
            place = Path(metadata.get(key) or ".").expanduser()
            if not place.exists():
                raise UserError(
                    f"the data set {name} is not there: {place} does not exist ({VARIABLE} is "
                    f"{os.environ.get(VARIABLE, 'not set: datasets')})"
                )


def demand_readers(names: tuple[str, ...]) -> None:
    """UserError for a data set that Detectron2 cannot read in this environment."""
    from detectron2.data import MetadataCatalog

    packages.lend_public_names()
    for name in names:
        kind = MetadataCatalog.get(name).as_dict().get("evaluator_type")
        if kind in READERS:
            module = importlib.import_module(f"detectron2.data.datasets.{READERS[kind]}")
            packages.demand_imports(Path(module.__file__), PACKAGES[kind], f"{name} cannot be read")


def demand_evaluators(names: tuple[str, ...]) -> None:
    """UserError for a data set that nothing here measures, or whose evaluator cannot run."""
    from detectron2.data import MetadataCatalog

    for name in names:
        kind = MetadataCatalog.get(name).as_dict().get("evaluator_type")
        if kind not in PACKAGES:
            raise UserError(f"no evaluator for {name}: its metadata say {kind!r}")
        source, subject = (
            Path(inspect.getfile(evaluator_class(kind))),
            f"{name} cannot be evaluated",
        )
        packages.demand_imports(source, PACKAGES[kind], subject, UNMEASURED)
        packages.demand_numpy(source, PACKAGES[kind], subject, UNMEASURED)
        if kind == "cityscapes_instance":
            packages.demand_plain_counts(subject, UNMEASURED)


def evaluator_class(kind: str) -> Any:
    """Detectron2's class that measures a data set of this kind, one of PACKAGES."""
    from detectron2 import evaluation

    if kind.startswith("cityscapes"):
        packages.lend_public_names()
    return {
        "coco": evaluation.COCOEvaluator,
        "lvis": evaluation.LVISEvaluator,
        "pascal_voc": evaluation.PascalVOCDetectionEvaluator,
        "cityscapes_instance": evaluation.CityscapesInstanceEvaluator,
        "cityscapes_sem_seg": evaluation.CityscapesSemSegEvaluator,
    }[kind]


def evaluator(name: str, folder: str) -> Any:
    """What measures a data set; results of COCO and LVIS go into `folder`."""
    from detectron2.data import MetadataCatalog

    kind = MetadataCatalog.get(name).as_dict()["evaluator_type"]
    build = evaluator_class(kind)
    return build(name, output_dir=folder) if kind in ("coco", "lvis") else build(name)
