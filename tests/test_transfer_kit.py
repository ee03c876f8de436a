"""configs/detectron2 and configs/openmmlab, scripts/finetune_detectron2.py, scripts/coco_subset.py."""

import json
import re
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
from convert_states import R50, arrays_of, meta_of, model_keys, random_state

from mcl_jax.convert.checks import detectron2_check
from mcl_jax.convert.finetuning import configuration, traps

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
    rows = [x.split("\t") for x in configuration.KEYS.read_text().splitlines()]
    return {key: kind for key, kind, _ in rows}


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
    config = configuration.read_yaml(path)
    leaves, known = configuration.leaves(config), schema()
    assert {key: type(x).__name__ for key, x in leaves.items()} == {k: known.get(k) for k in leaves}
    assert traps.find(configuration.read(path)) == []
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


def test_torchvision_s_figures_in_the_docs_are_those_of_runs_that_differ_in_weights_alone():
    """The table of docs/transfer.md, section 4, and the results in docs/study/torchvision."""
    paths = sorted((ROOT / "docs/study/torchvision").glob("*.json"))
    rows = {
        "MCL": "mcl",
        "MCL, backbone alone": "mcl_backbone",
        "MoCo v2": "moco",
        "random weights": "random",
    }
    runs = {path.stem: json.loads(path.read_text()) for path in paths}
    assert sorted(runs) == sorted(f"{row}-seed{seed}" for row in rows.values() for seed in (0, 1))
    for name, run in runs.items():
        seed = int(name[-1])
        alike = runs[f"mcl-seed{seed}"]
        assert run["seed"] == seed and run["data"] == alike["data"]
        assert run["settings"] == alike["settings"]
    scores = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    text = (ROOT / "docs/transfer.md").read_text()
    for words, name in rows.items():
        (row,) = re.findall(rf"^\| {words} \|[^|]+\| (.+) \|$", text, re.M)
        both = [[100 * runs[f"{name}-seed{s}"]["scores"][key] for key in scores] for s in (0, 1)]
        means = [f"{(first + second) / 2:.1f}" for first, second in zip(*both, strict=True)]
        means[0] += f" ({both[0][0]:.1f}, {both[1][0]:.1f})"
        assert row.split(" | ") == means


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


def run(script, *arguments):
    command = [sys.executable, f"scripts/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


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


def test_names_of_subsets_keep_every_dot_and_no_file_of_the_users_is_touched(tmp_path, capsys):
    path, own = tmp_path / "instances.v2.json", tmp_path / "instances.json"
    path.write_text(json.dumps(coco(400)))
    own.write_text("mine")
    percents = ("0.5", "0.25", "1", "10", "10.123456")
    assert command_line.run("coco-subset", path, "--percent", *percents) == 0
    said = capsys.readouterr().out.splitlines()
    names = [f"instances.v2_{percent}percent" for percent in percents]
    assert [line.split(" and ")[0] for line in said] == [
        f"wrote {tmp_path / name}.json" for name in names
    ]
    written = {f"{name}.{suffix}" for name in names for suffix in ("json", "txt")}
    assert {p.name for p in tmp_path.iterdir()} == {*written, path.name, own.name}
    assert own.read_text() == "mine" and json.loads(path.read_text()) == coco(400)
    counts = [len((tmp_path / f"{name}.txt").read_text().split()) for name in names]
    assert counts == [2, 1, 4, 40, 40]


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
