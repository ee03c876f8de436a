"""--parts of the Detectron2 export: what is in the file, what the report says, what is refused."""

import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_states import (
    R18,
    R50,
    arrays_of,
    export_to,
    matches,
    meta_of,
    model_keys,
    random_state,
)

from mcl_jax.convert.command import main
from mcl_jax.convert.names import detectors
from mcl_jax.convert.targets import detectron2
from mcl_jax.runtime import checkpoint
from mcl_jax.state import TrainState

PREFIXES = {"backbone": ("stem.", "res"), "fpn": ("fpn_",), "head": ("box_head.",)}


@pytest.fixture(scope="module")
def state():
    return random_state(R18, 3)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("all", ("backbone", "fpn", "head")),
        ("backbone", ("backbone",)),
        ("head", ("head",)),
        ("fpn,backbone", ("backbone", "fpn")),
    ],
)
def test_the_file_holds_the_parts_and_the_report_the_rest(tmp_path, state, given, parts):
    export_to("detectron2", state, meta_of(R18), tmp_path / "out", given)
    model = pickle.loads((tmp_path / "out" / "mcl_resnet18.pkl").read_bytes())["model"]
    whole = arrays_of("detectron2", state, meta_of(R18))
    starts = tuple(prefix for part in parts for prefix in PREFIXES[part])
    assert list(model) == [name for name in whole if name.startswith(starts)]
    assert all(np.array_equal(x, whole[name]) for name, x in model.items())
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    left = {part["source"]: part for part in content["left_out"]}
    for part in PREFIXES:
        row = left.get(f"params/encoder/{part}/")
        assert (row is None) == (part in parts)
        assert row is None or row["reason"] == "not asked for (--parts)"
    assert not any("alone" in note for note in content["notes"])


def test_backbone_and_fpn_fill_exactly_these_of_a_detector():
    """Names of the real models; statistics counters, which nobody loads, aside."""
    names = list(detectors.layout(R50, "detectron2", parts=("backbone", "fpn")).named)
    for detector in ("mask_rcnn_fpn_bn4conv1fc", "retinanet_fpn_bn"):
        model = [k for k in model_keys(detector) if not k.endswith("num_batches_tracked")]
        file_names = {k for k in model if k.startswith("backbone.") and ".top_block." not in k}
        assert set(matches(model, names)) == file_names


@pytest.mark.parametrize(
    ("parts", "detector", "loads", "new"),
    [
        (("backbone", "fpn", "head"), "Panoptic FPN", "backbone, FPN, box head", "RPN"),
        (("backbone", "fpn"), "Semantic FPN", "backbone, FPN", "semantic head"),
        (("backbone",), "RetinaNet FPN", "backbone", "FPN, P6/P7"),
        (("head",), "Mask R-CNN / Faster R-CNN C4", "nothing", "backbone, RPN"),
    ],
)
def test_the_report_says_what_every_detector_loads(parts, detector, loads, new):
    row = detectron2.loading(parts)[detector]
    assert row["loads"].startswith(loads) and row["from_scratch"].startswith(new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "detectron2", "--parts", "neck"), "'neck' is not one of backbone, fpn, head"),
        (("--to", "detectron2", "--parts", "fpn,head"), "pre-trained no fpn .* only backbone"),
        (("--to", "timm", "--parts", "fpn"), "--to timm has no fpn, only backbone"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, state, arguments, message):
    """Of a run of BYOL, which has no FPN."""
    trees = jax.tree.map(jnp.asarray, state)
    full = TrainState(step=jnp.int32(7), opt_state={"count": jnp.int32(7)}, memory={}, **trees)
    config = meta_of(R18)["config"] | {"method": "byol"}
    checkpoint.write(tmp_path / "run", full, {"config": config})
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "run"), *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and len(error.splitlines()) == 1 and re.search(message, error)
    assert not (tmp_path / "out").exists()
