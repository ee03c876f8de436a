"""Detectron2 export: names and shapes against the real library's lists; pickle, config, report.

Shapes: here NHWC and HWIO; exported arrays OIHW.
"""

import ast
import hashlib
import io
import json
import pickle
import pickletools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from convert_states import (
    NUMERICS,
    R18,
    R50,
    export,
    matches,
    meta_of,
    model_keys,
    random_state,
)

from mcl_jax.convert.command import main
from mcl_jax.convert.files import strict
from mcl_jax.convert.finetuning import configuration
from mcl_jax.convert.names import architectures, table
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.encoder import Encoder, predictors
from mcl_jax.models.pyramid import assigned_spans
from mcl_jax.runtime import checkpoint
from mcl_jax.state import TrainState


def module_shapes(a, levels):
    """source -> shape of everything that the modules themselves create."""
    encoder = Encoder(a, NUMERICS)
    spans = assigned_spans((1,) * levels)
    images = jnp.zeros((2 * levels, 64, 64, 3))
    init = lambda key: encoder.init(key, images, spans, sides=2, full=True, train=True)  # noqa: E731
    variables = jax.eval_shape(init, jax.random.key(0))
    tiles = tuple(jnp.zeros((2, 4**s, a.projector_out)) for s in range(levels))
    heads = jax.eval_shape(
        lambda key: predictors(a, NUMERICS).init(key, tiles, train=True), jax.random.key(0)
    )
    shapes = {}
    for collection in ("params", "batch_stats"):
        tree = {"encoder": variables[collection], "predictor": heads[collection]}
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        for path, x in flat:
            shapes["/".join((collection, *(key.key for key in path)))] = x.shape
    return shapes


@pytest.fixture(scope="module")
def r50(tmp_path_factory):
    state = random_state(R50, 1)
    return state, tmp_path_factory.mktemp("r50") / "out"


@pytest.fixture(scope="module")
def r50_pickle(r50):
    return export(R50, *r50)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_table_lists_exactly_what_the_modules_create(backbone):
    a = Architecture(backbone, 8, 16, 3, 32, 12, 24, "fpn", 0.0)
    rows = table.online(a) + table.predictor(a, 2)
    assert {t.source: t.shape for t in rows} == module_shapes(a, 2)
    assert len({t.authors for t in rows}) == len(rows)


def test_resnet50_has_225_trainable_tensors():
    rows = table.online(R50) + table.predictor(R50, 4)
    assert sum(t.source.startswith("params/") for t in rows) == 225


def test_file_has_what_detectron2_reads(r50_pickle):
    assert set(r50_pickle) == {"model", "__author__", "matching_heuristics"}
    assert r50_pickle["__author__"] == "mcl_jax"
    assert r50_pickle["matching_heuristics"] is True
    for x in r50_pickle["model"].values():
        assert type(x) is np.ndarray and x.dtype == np.float32
        assert x.flags.c_contiguous and x.flags.writeable  # torch.from_numpy warns otherwise


def test_pickle_names_no_private_module_of_numpy(r50, r50_pickle):
    data = (r50[1] / "mcl_resnet50.pkl").read_bytes()
    imported = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            imported.add(f"{module}.{name}")
            return super().find_class(module, name)

    Recorder(io.BytesIO(data)).load()
    assert imported == {"numpy.ndarray", "numpy.dtype"}
    texts = [value for _, value, _ in pickletools.genops(data) if isinstance(value, str)]
    assert texts and not any("core" in text for text in texts)


def test_mask_rcnn_names_and_shapes(r50_pickle):
    model = model_keys("mask_rcnn_fpn_bn4conv1fc")
    names = r50_pickle["model"]
    found = matches(model, names)
    assert set(found.values()) == set(names)
    assert all(model[key] == names[name].shape for key, name in found.items())
    uncovered = {k for k in model if k not in found and not k.endswith("num_batches_tracked")}
    scratch = ("proposal_generator.", "roi_heads.mask_head.", "roi_heads.box_predictor.")
    rest = {key for key in uncovered if not key.startswith(scratch)}
    assert rest == {"roi_heads.box_head.fc1.weight", "roi_heads.box_head.fc1.bias"}


@pytest.mark.parametrize(
    "model_name, unused, scratch",
    [
        (
            "retinanet_fpn_bn",
            ("box_head.", "fpn_lateral2.", "fpn_output2."),
            ("head.", "backbone.top_block."),
        ),
        (
            "mask_rcnn_c4_bn",
            ("box_head.", "fpn_"),
            ("proposal_generator.", "roi_heads.box_predictor.", "roi_heads.mask_head."),
        ),
        (
            "keypoint_rcnn_fpn_bn",
            ("box_head.",),  # this model's box head has no convolutions
            (
                "proposal_generator.",
                "roi_heads.box_head.fc",
                "roi_heads.box_predictor.",
                "roi_heads.keypoint_head.",
            ),
        ),
    ],
)
def test_other_models_load_their_part(r50_pickle, model_name, unused, scratch):
    model, names = model_keys(model_name), r50_pickle["model"]
    found = matches(model, names)
    assert all(model[key] == names[name].shape for key, name in found.items())
    left = set(names) - set(found.values())
    assert left == {name for name in names if name.startswith(unused)}
    uncovered = {k for k in model if k not in found and not k.endswith("num_batches_tracked")}
    assert uncovered and all(key.startswith(scratch) for key in uncovered)


def test_report_accounts_for_every_array(r50, r50_pickle):
    state, out = r50
    report = json.loads((out / "report.json").read_text())
    assert report["sha256"] == hashlib.sha256((out / report["file"]).read_bytes()).hexdigest()
    assert report["step"] == 3 and report["checkpoint"] == "runs/test" and not report["notes"]
    rows = {row["name"]: row for row in report["tensors"]}
    assert list(rows) == list(r50_pickle["model"])
    arrays = strict.flatten(state)
    for name, x in r50_pickle["model"].items():
        row = rows[name]
        assert row["shape"] == list(x.shape) and row["dtype"] == "float32"
        # Norms of the checkpoint's own array: 1e-6 is far above float64 rounding of a sum.
        source = arrays[row["source"]].astype(np.float64)
        np.testing.assert_allclose(row["norm"], np.linalg.norm(source), rtol=1e-6)
    left = sum(part.get("tensors", 0) for part in report["left_out"])
    assert left + len(rows) == len(arrays)
    assert all(part["reason"] for part in report["left_out"])
    text = (out / "report.txt").read_text()
    assert all(name in text for name in rows) and report["sha256"] in text


def config_leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from config_leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read_config(path):
    """Values as Detectron2 decodes them: strings that are Python literals become their value."""
    leaves = {}
    for key, value in config_leaves(yaml.safe_load(path.read_text())):
        is_tuple = isinstance(value, str) and value.startswith("(")
        leaves[key] = ast.literal_eval(value) if is_tuple else value
    return leaves


def test_config_has_only_keys_and_types_of_detectron2(r50, r50_pickle):
    leaves = read_config(r50[1] / "mask_rcnn_R_50_FPN_1x.yaml")
    lines = configuration.KEYS.read_text().splitlines()
    known = {key: kind for key, kind, _ in (line.split("\t") for line in lines)}
    assert {key: type(value).__name__ for key, value in leaves.items()} == {
        key: known.get(key) for key in leaves
    }


def test_config_avoids_the_known_traps(r50, r50_pickle):
    leaves = read_config(r50[1] / "mask_rcnn_R_50_FPN_1x.yaml")
    assert leaves["MODEL.WEIGHTS"] == str((r50[1] / "mcl_resnet50.pkl").resolve())
    assert leaves["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert leaves["MODEL.BACKBONE.FREEZE_AT"] == 0
    for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        assert leaves[f"MODEL.{part}.NORM"] == "SyncBN"
    assert leaves["INPUT.FORMAT"] == "RGB"
    assert leaves["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert leaves["MODEL.PIXEL_STD"] == [58.395, 57.12, 57.375]
    assert leaves["TEST.PRECISE_BN.ENABLED"] is True
    assert (leaves["MODEL.ROI_BOX_HEAD.NUM_CONV"], leaves["MODEL.ROI_BOX_HEAD.NUM_FC"]) == (4, 1)
    assert (leaves["SOLVER.MAX_ITER"], leaves["SOLVER.STEPS"]) == (90_000, (60_000, 80_000))
    assert (leaves["SOLVER.IMS_PER_BATCH"], leaves["SOLVER.BASE_LR"]) == (16, 0.02)


def test_config_of_a_narrow_network_fits_it_and_says_what_detectron2_refuses(tmp_path):
    export(R18, random_state(R18, 3), tmp_path)
    path = tmp_path / "mask_rcnn_R_18_FPN_1x.yaml"
    leaves = read_config(path)
    sizes = ("DEPTH", "STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS")
    assert [leaves[f"MODEL.RESNETS.{key}"] for key in sizes] == [18, 8, 8, 8]
    assert leaves["MODEL.FPN.OUT_CHANNELS"] == leaves["MODEL.ROI_BOX_HEAD.CONV_DIM"] == 16
    assert leaves["MODEL.ROI_BOX_HEAD.NUM_CONV"] == 2
    assert "WARNING" in path.read_text()
    assert "RES2_OUT_CHANNELS 64" in json.loads((tmp_path / "report.json").read_text())["notes"][0]


def test_command_converts_a_checkpoint_twice_into_the_same_folder(tmp_path, capsys):
    state = random_state(R18, 8)
    trees = jax.tree.map(jnp.asarray, state)
    full = TrainState(step=jnp.int32(7), opt_state={"count": jnp.int32(7)}, memory={}, **trees)
    checkpoint.write(tmp_path / "run", full, {"config": meta_of(R18)["config"]})
    arguments = [str(tmp_path / "run"), "--to", "detectron2", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    main(arguments)
    first = (tmp_path / "out" / "mcl_resnet18.pkl").read_bytes()
    main(arguments)
    assert (tmp_path / "out" / "mcl_resnet18.pkl").read_bytes() == first
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    config = "mask_rcnn_R_18_FPN_1x.yaml"
    written = ["card.html", config, "mcl_resnet18.pkl", "report.json", "report.txt"]
    assert names == sorted([*written, "mine.txt"])
    kernel = state["params"]["encoder"]["backbone"]["stem"]["kernel"]
    written = pickle.loads(first)["model"]["stem.conv1.weight"]
    np.testing.assert_array_equal(written, kernel.transpose(3, 2, 0, 1))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["step"] == 7
    assert str(tmp_path / "out" / config) in capsys.readouterr().out


@pytest.mark.parametrize(
    "montage, idle",
    [
        ({"levels": 4, "assembly": "montage"}, ()),
        ({"levels": 2, "assembly": "montage"}, ("P3", "P2")),
        ({"levels": 2, "assembly": "mosaic"}, ("P5", "P3", "P2")),
    ],
)
def test_levels_that_no_loss_read_are_known(montage, idle):
    assert architectures.idle_levels({"montage": montage}) == idle
