"""configs/detectron2 and configs/openmmlab, scripts/finetune_detectron2.py, scripts/coco_subset.py."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from convert_states import DATA, R50, arrays_of, export, meta_of, model_keys, random_state

from mcl_jax.convert.checks import detectron2_check
from mcl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
KIT = sorted((ROOT / "configs" / "detectron2").glob("*.yaml"))
ROWS = [path for path in KIT if not path.name.startswith("base_")]
OPENMMLAB = sorted((ROOT / "configs" / "openmmlab").glob("*-*.py"))
NUMBERS = re.compile(r"(?:AP50|AP|rare|mIoU) ([\d.]+)")


@pytest.fixture(scope="module")
def weights():
    return {
        n: x.shape for n, x in arrays_of("detectron2", random_state(R50, 0), meta_of(R50)).items()
    }


def schema():
    rows = [x.split("\t") for x in (DATA / "detectron2_config_keys.txt").read_text().splitlines()]
    return {key: kind for key, kind, _ in rows}


def set_leaf(config, key, value):
    """A copy of a nested configuration with one key changed (None: taken out)."""
    config = json.loads(json.dumps(config))
    *parents, leaf = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node.pop(leaf) if value is None else node.update({leaf: value})
    return config


def test_there_is_a_file_for_every_row_of_the_papers():
    names = {path.stem for path in ROWS}
    assert names == {
        *(f"coco_mask_rcnn_fpn_{x}" for x in ("12k", "1x", "2x", "6x")),
        *(f"coco_mask_rcnn_c4_{x}" for x in ("12k", "1x", "2x")),
        *(f"coco_retinanet_{x}" for x in ("12k", "1x", "2x", "6x")),
        *(f"coco_retinanet_{x}percent" for x in (1, 2, 5, 10)),
        "lvis_v1_mask_rcnn_fpn",
        "coco_keypoint_rcnn_fpn",
        "cityscapes_mask_rcnn_fpn",
        "cityscapes_semantic_fpn",
        "voc_faster_rcnn_c4_24k",
    }


@pytest.mark.parametrize("path", KIT, ids=lambda path: path.stem)
def test_keys_and_types_are_detectron2s_and_no_trap_is_left(path):
    config = detectron2_check.read_config(path)
    leaves, known = detectron2_check.leaves(config), schema()
    assert {key: type(x).__name__ for key, x in leaves.items()} == {k: known.get(k) for k in leaves}
    assert detectron2_check.traps(config) == []
    solver = config["SOLVER"]
    assert list(solver["STEPS"]) == sorted(solver["STEPS"])
    assert solver["STEPS"][-1] < solver["MAX_ITER"]


@pytest.mark.parametrize("path", [*ROWS, *OPENMMLAB], ids=lambda path: path.stem)
def test_every_file_names_its_row_and_its_controls(path):
    lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert lines[1].startswith("paper: ")
    for control in ("supervised", "random init"):
        (row,) = [line for line in lines if line.startswith(control)]
        if path.suffix == ".yaml":
            assert f"--control {control.split()[0]}" in row
        assert NUMBERS.search(row) or "not in the paper" in row


def test_figures_in_the_files_are_those_of_the_table_in_the_docs():
    """docs/transfer.md lists every file; its figures are the file's first MCL or DetCo row."""
    table = {}
    for line in (ROOT / "docs" / "transfer.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `configs/"):
            table[cells[0].strip("`")] = cells[1:]
    files = [*ROWS, *OPENMMLAB]
    assert set(table) == {str(path.relative_to(ROOT)) for path in files}
    for path in files:
        text = path.read_text()
        expected, supervised, random, ours = table[str(path.relative_to(ROOT))]
        for name, cell in (("supervised", supervised), ("random init", random)):
            row = next(x for x in text.splitlines() if x.startswith(f"# {name}"))
            assert NUMBERS.findall(row) == re.findall(r"[\d.]+\d", cell), (path.name, name)
        rows = [
            x for x in text.splitlines() if re.match(r"# (MCL|DetCo) (\d|supervised|\(epochs)", x)
        ]
        figures = [figure for row in rows for figure in NUMBERS.findall(row)]
        assert set(re.findall(r"\d+\.\d", expected)) <= set(figures), path.name
        assert ours == "—"


MODELS = {
    "base_rcnn_fpn": "mask_rcnn_fpn_bn4conv1fc",
    "base_rcnn_c4": "mask_rcnn_c4_bn",
    "base_retinanet": "retinanet_fpn_bn",
}


def shapes_of(path):
    """The state_dict that a file's model has in Detectron2."""
    text = path.read_text()
    base = re.search(r"_BASE_: (\w+).yaml", text)[1]
    name = "keypoint_rcnn_fpn_bn" if "KEYPOINT_ON: True" in text else MODELS[base]
    model = model_keys(name)
    if base == "base_rcnn_c4":
        norm = {f"roi_heads.res5.norm.{k}": (2048,) for k in ("weight", "bias", "running_mean")}
        model |= norm
    if "SemanticSegmentor" in text:
        model = {key: shape for key, shape in model.items() if key.startswith("backbone.")}
        model["sem_seg_head.p2.0.weight"] = (128, 256, 3, 3)
    return model


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_the_exported_weights_fill_the_model_of_every_file(path, weights):
    model = shapes_of(path)
    found = detectron2_check.match(model, weights)
    assert all(model[key] == weights[name] for key, name in found.items())
    pretrained = ("backbone.", "roi_heads.res5.", "roi_heads.box_head.conv")
    new = ("backbone.top_block.", "roi_heads.res5.norm.")
    wanted = {key for key in model if key.startswith(pretrained) and not key.startswith(new)}
    assert set(found) == {key for key in wanted if not key.endswith("num_batches_tracked")}
    lines = detectron2_check.loaded(model, weights)
    assert lines[0].startswith(f"{len(found)} of") and not any("NOT" in line for line in lines)


def test_weights_that_fill_the_backbone_in_part_are_refused(weights):
    model = shapes_of(ROWS[0])
    broken = {name: shape for name, shape in weights.items() if name != "res4.2.conv1.weight"}
    with pytest.raises(UserError, match="1 arrays are missing, first .*res4.2.conv1.weight"):
        detectron2_check.loaded(model, broken)
    with pytest.raises(UserError, match="of another shape: .*stem.conv1.weight"):
        detectron2_check.loaded(model, weights | {"stem.conv1.weight": (32, 3, 7, 7)})
    full = {f"backbone.bottom_up.{name}": shape for name, shape in weights.items()}
    with pytest.raises(UserError, match="do not fill the backbone"):
        detectron2_check.loaded(
            shapes_of(ROOT / "configs/detectron2/coco_mask_rcnn_c4_1x.yaml"), full
        )
    other = detectron2_check.loaded(model, weights | {"box_head.conv1.weight": (1, 1, 3, 3)})
    assert other[-1] == "NOT loaded, another shape: roi_heads.box_head.conv1.weight"


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.RESNETS.STRIDE_IN_1X1", True),
        ("MODEL.RESNETS.STRIDE_IN_1X1", None),
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.PIXEL_STD", None),
        ("MODEL.BACKBONE.FREEZE_AT", 2),
        ("MODEL.RESNETS.NORM", "FrozenBN"),
        ("MODEL.FPN.NORM", ""),
        ("MODEL.ROI_BOX_HEAD.NORM", None),
        ("MODEL.ROI_BOX_HEAD.NUM_CONV", 0),
        ("TEST.PRECISE_BN.ENABLED", False),
    ],
)
def test_every_trap_is_named(key, value):
    config = detectron2_check.read_config(ROOT / "configs/detectron2/coco_mask_rcnn_fpn_1x.yaml")
    (trap,) = detectron2_check.traps(set_leaf(config, key, value))
    assert trap.startswith(f"{key} is {'not set' if value is None else value!r}"[: len(key) + 4])


def run(script, *arguments):
    command = [sys.executable, f"scripts/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_check_of_the_fine_tuning_script(tmp_path):
    export(R50, random_state(R50, 0), tmp_path)
    own = tmp_path / "mask_rcnn_R_50_FPN_1x.yaml"
    done = run("finetune_detectron2", own, "--weights", tmp_path / "mcl_resnet50.pkl", "--check")
    assert done.returncode == 0 and done.stderr == "" and "WARNING" not in done.stdout
    assert "325 arrays (backbone, FPN, box head)" in done.stdout
    own.write_text(own.read_text().replace("FORMAT: RGB", "FORMAT: BGR"))
    done = run("finetune_detectron2", own, "--control", "supervised", "--check")
    assert "WARNING: INPUT.FORMAT is 'BGR', must be 'RGB'" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere.yaml", "--control", "random"), "nowhere.yaml cannot be read"),
        (("README.md", "--control", "random"), "README.md is not YAML"),
        ((ROWS[0], "--weights", "x.pkl"), "x.pkl is not a file; give a file of weights"),
        ((ROWS[0], "--weights", ROWS[0]), "no format of weights begins with"),
        ((ROWS[0], "--control", "random"), "Detectron2 is not installed"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run("finetune_detectron2", *arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr


@pytest.mark.parametrize("path", OPENMMLAB, ids=lambda path: path.stem)
def test_openmmlab_files_are_python_and_fit_what_convert_writes(path, tmp_path):
    values = {}
    exec(compile(path.read_text(), path.name, "exec"), values)
    assert values["load_from"].startswith("exported/mcl_mmdet_") and values["_base_"]
    assert values["model"]["backbone"].get("norm_eval", False) is False
    if "swin" in path.name:
        from swin_networks import SWIN_T

        from mcl_jax.convert.targets import mmdet

        state = {"params": {}, "batch_stats": {}}
        from convert_states import job_of

        text = mmdet.files(job_of("mmdet", state, meta_of(SWIN_T)))[
            "mask-rcnn_swin_t_fpn_1x_coco.py"
        ]
        written = {}
        exec(text, written)
        same = ("_base_", "model", "norm_cfg")
        assert {key: written[key] for key in same} == {key: values[key] for key in same}


def test_the_export_fills_backbone_and_fpn_of_sparse_rcnn():
    """Names and shapes that MMDetection 3.3.0 built from our file (of six heads the first)."""
    model = model_keys("mmdet_sparse_rcnn_r50_fpn")
    found = {n: x.shape for n, x in arrays_of("mmdet", random_state(R50, 0), meta_of(R50)).items()}
    counters = "num_batches_tracked"
    wanted = {key for key in model if key.startswith(("backbone.", "neck."))}
    assert len(wanted) == 366 and "roi_head.bbox_head.0.fc_cls.weight" in model
    assert {key for key in wanted if not key.endswith(counters)} <= set(found)
    assert all(tuple(found[key]) == model[key] for key in wanted & set(found))
    rest = set(found) - set(model)
    assert all(name.startswith("roi_head.bbox_head.shared_convs.") for name in rest)


def coco(images):
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 3 * i, "file_name": f"{i}.jpg", "height": 8, "width": 9} for i in range(images)
        ],
        "annotations": [
            {"id": k, "image_id": 3 * (k % images), "category_id": 1, "bbox": [1, 2, 3, 4]}
            for k in range(3 * images)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


def test_subsets_are_the_same_everywhere_and_nested(tmp_path):
    content = coco(400)
    for order in (content["images"], content["images"][::-1]):
        path = tmp_path / "instances_train2017.json"
        path.write_text(json.dumps(content | {"images": order}))
        done = run("coco_subset", path)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 4
        chosen = {}
        for percent in (1, 2, 5, 10):
            stem = tmp_path / f"instances_train2017_{percent}percent"
            ids = [int(line) for line in stem.with_suffix(".txt").read_text().split()]
            part = json.loads(stem.with_suffix(".json").read_text())
            assert sorted(image["id"] for image in part["images"]) == ids
            assert {a["image_id"] for a in part["annotations"]} == set(ids)
            assert len(part["annotations"]) == 3 * len(ids) and part["info"] and part["categories"]
            chosen[percent] = set(ids)
        assert [len(ids) for ids in chosen.values()] == [4, 8, 20, 40]
        assert chosen[1] < chosen[2] < chosen[5] < chosen[10]
        assert sorted(chosen[1]) == [120, 558, 675, 930]  # pinned: papers' rows are comparable
    done = run("coco_subset", path, "--seed", 1, "--percent", 1, "--out", tmp_path / "other")
    other = (tmp_path / "other" / "instances_train2017_1percent.txt").read_text()
    assert {int(line) for line in other.split()} != chosen[1]


@pytest.mark.parametrize(
    "text, arguments, message",
    [
        (None, (), "does not exist; give a file like COCO's"),
        ("{", (), "is not JSON"),
        ('{"images": []}', (), "no lists 'annotations' and 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', (), "lists no images"),
        ("{}", ("--percent", "0"), "--percent 0 must be above 0"),
    ],
)
def test_bad_annotation_files_are_one_line(tmp_path, text, arguments, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    done = run("coco_subset", path, *arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr


def test_configurations_with_tuples_and_bases_are_read_as_detectron2_does(tmp_path):
    (tmp_path / "base.yaml").write_text("A:\n  B: (1, 2)\n  C: 3\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nA:\n  C: 4\n  D: [x]\n")
    read = detectron2_check.read_config(tmp_path / "own.yaml")
    assert read == {"A": {"B": (1, 2), "C": 4, "D": ["x"]}}
    assert ast.literal_eval("(1, 2)") == read["A"]["B"]
