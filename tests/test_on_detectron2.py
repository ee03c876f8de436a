"""Every file of configs/detectron2 in the real Detectron2, on tiny data sets; skipped without it.

In Detectron2's environment, which has neither JAX nor this project's other packages:

    pip install pytest
    python -m pytest --noconftest -p no:cacheprovider tests/test_on_detectron2.py

A file of the kit is checked, trained for two iterations, resumed for a third, and evaluated.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("detectron2")
torch = pytest.importorskip("torch")

# Detectron2 and its packages use deprecated names; that is theirs to mend.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).parents[1]
ROWS = sorted(
    path
    for path in (ROOT / "configs" / "detectron2").glob("*.yaml")
    if not path.name.startswith("base_")
)
SMALL = {
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": "()",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MAX_SIZE_TEST": 96,
    "INPUT.CROP.ENABLED": False,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 32,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 16,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,  # else nothing is found after two iterations
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 8,
    "TEST.PRECISE_BN.NUM_ITER": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets and an export: its names and shapes are those that our exports are tested to have."""
    import detectron2_data

    from mcl_jax.convert.files import formats
    from mcl_jax.convert.finetuning import configuration, expected

    root = tmp_path_factory.mktemp("kit")
    os.environ["DETECTRON2_DATASETS"] = str(root / "data")
    detectron2_data.make(root / "data")
    settings = configuration.read(ROOT / "configs/detectron2/coco_mask_rcnn_fpn_1x.yaml")
    r = np.random.default_rng(0)
    arrays = {}
    for name, shape in expected.parts(settings).items():
        short = name.split("box_head.")[-1] if "box_head" in name else name
        short = short.removeprefix("backbone.").removeprefix("bottom_up.")
        short = f"box_head.{short}" if "box_head" in name else short
        x = r.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:] or (1,)))
        x = {"var": 1 + 0.1 * abs(x), "mean": 0.1 * x}.get(name.rsplit("_", 1)[-1], x)
        if len(shape) == 1 and not name.endswith(("var", "mean", "bias")):
            x = np.ones(shape)
        arrays[short] = x.astype(np.float32)
    formats.write_pickle(root / "mcl_resnet50.pkl", arrays, {})
    return root


def run(*arguments):
    from mcl_jax.convert.finetuning import command, task

    command.run(task.parse("", [str(x) for x in arguments]))


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_file_is_checked_trained_resumed_and_evaluated(path, folder, capfd, monkeypatch):
    from mcl_jax.convert.finetuning import configuration, expected, library, task
    from mcl_jax.errors import UserError

    monkeypatch.chdir(folder)  # cityscapesscripts leaves a file where it is
    out = folder / path.stem
    weights = ("--weights", folder / "mcl_resnet50.pkl")
    options = [x for pair in SMALL.items() for x in pair] + ["OUTPUT_DIR", out]
    try:
        run(path, *weights, "--check", *options)
    except UserError as error:  # lvis and cityscapesscripts, on the numpy that is installed
        assert "no longer" in str(error) and path.stem.startswith(("lvis", "cityscapes"))
        options += ["DATASETS.TEST", "()"]
        capfd.readouterr()
        run(path, *weights, "--check", *options)
    checked = capfd.readouterr().out.splitlines()
    assert not out.exists() and not any(line.startswith("WARNING") for line in checked)

    cfg = library.configured(task.parse("", [str(x) for x in (path, *weights, *options)]))
    built = library.model_shapes(cfg)
    foreseen = expected.parts(configuration.read(path, [str(x) for x in options]))
    assert {name: built[name] for name in foreseen} == foreseen

    run(path, *weights, *options, "SOLVER.MAX_ITER", "2")
    log = (out / "log.txt").read_text()
    assert all(line in log for line in checked[1:]) and "Traceback" not in log
    assert (out / "last_checkpoint").read_text() == "model_final.pth"

    run(path, *weights, "--resume", *options, "SOLVER.MAX_ITER", "3")
    assert f"goes on from {out}/model_final.pth" in (out / "log.txt").read_text()
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 2

    run(path, *weights, "--resume", "--eval-only", *options)
    run(path, "--weights", out / "model_final.pth", "--eval-only", *options)
    said = capfd.readouterr().out.splitlines()
    count = len([name for name in built if not name.endswith("num_batches_tracked")])
    assert any(
        line.startswith(f"{count} of {count} arrays come from the file, 0 ") for line in said
    )
    shutil.rmtree(out)


FPN = ROOT / "configs" / "detectron2" / "coco_mask_rcnn_fpn_1x.yaml"
SUBSET = ROOT / "configs" / "detectron2" / "coco_retinanet_1percent.yaml"


@pytest.mark.parametrize(
    "path, arguments, words",
    [
        (
            FPN,
            ("DATASETS.TEST", "('coco_2017_vall',)"),
            "no data set 'coco_2017_vall' (DATASETS); did",
        ),
        (
            FPN,
            ("DATASETS.TRAIN", "('coco_2014_train',)"),
            "the data set coco_2014_train is not there",
        ),
        (FPN, ("DATASETS.TEST", "('ade20k_sem_seg_val',)"), "no evaluator for ade20k_sem_seg_val"),
        (
            SUBSET,
            ("--num-gpus", "2", "--subsets", "nowhere"),
            "1percent.json does not exist; scripts/",
        ),
        (
            FPN,
            ("SOLVER.IMS_PER_BATCH", "3", "--num-gpus", "2"),
            "must be a multiple of --num-gpus 2",
        ),
        (FPN, ("MODEL.ROI_HEADS.NAME", "MyHeads"), "Detectron2 cannot build the model"),
        (FPN, ("MODEL.FPN.NORM", ""), "MODEL.FPN.NORM must be 'SyncBN', for the file holds norms"),
        (FPN, ("MODEL.RESNETS.DEPTH", "101"), "a ResNet-50, the configuration builds a ResNet-101"),
        (FPN, ("MODEL.DEVICE", "cuda"), "finds 0 GPUs here; MODEL.DEVICE cpu runs without, slowly"),
        (FPN, ("--num-gpus", "2"), "--num-gpus 2 with MODEL.DEVICE cpu: give --num-gpus 1"),
        (
            FPN,
            ("OUTPUT_DIR", "/dev/null/run"),
            "OUTPUT_DIR /dev/null/run cannot be written to: Not a",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    path, arguments, words, folder, monkeypatch
):
    from mcl_jax.errors import UserError

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(folder)
    options = [x for pair in SMALL.items() for x in pair]
    with pytest.raises(UserError) as caught:
        run(path, "--weights", folder / "mcl_resnet50.pkl", *options, *arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "output").exists()


@pytest.mark.parametrize("flags", [("--resume",), ("--eval-only",)])
def test_weights_that_do_not_fit_are_refused_by_resume_and_eval_only_too(flags, folder):
    """Names with `backbone.bottom_up.` fit no C4 detector: Detectron2 only warns."""
    from mcl_jax.convert.files import formats
    from mcl_jax.errors import UserError

    arrays = formats.read_pickle(folder / "mcl_resnet50.pkl")
    starts = {"fpn": "backbone.", "box": "roi_heads."}
    full = {starts.get(n[:3], "backbone.bottom_up.") + n: x for n, x in arrays.items()}
    formats.write_pickle(folder / "full.pkl", full, {})
    path = ROOT / "configs" / "detectron2" / "coco_mask_rcnn_c4_1x.yaml"
    options = [x for pair in SMALL.items() for x in pair]
    with pytest.raises(UserError, match="do not fill the backbone"):
        run(path, "--weights", folder / "full.pkl", *flags, *options)


def test_the_evaluators_packages_are_looked_at(folder):
    """What pip gives today for lvis and cityscapesscripts uses names that numpy lost."""
    from mcl_jax.convert.finetuning import datasets, packages
    from mcl_jax.errors import UserError

    packages.lend_public_names()
    datasets.demand_evaluators(("coco_2017_val", "voc_2007_test", "keypoints_coco_2017_val"))
    datasets.demand_readers(("coco_2017_val", "lvis_v1_train", "cityscapes_fine_sem_seg_train"))
    for name, lost in (("lvis_v1_val", "float"), ("cityscapes_fine_sem_seg_val", "in1d")):
        if hasattr(np, lost):
            datasets.demand_evaluators((name,))
            continue
        with pytest.raises(
            UserError, match=rf"np.{lost} .* which numpy .* no longer has; pip inst"
        ):
            datasets.demand_evaluators((name,))
