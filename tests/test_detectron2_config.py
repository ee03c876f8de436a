"""The YAML beside an export: each method gets the detector that its weights serve (Detectron2)."""

import json

import pytest
from convert_states import NARROW_R50, R18, R50, arrays_of, export_to, job_of, meta_of, random_state

from mcl_jax import program
from mcl_jax.configs import mcl
from mcl_jax.convert.checks import detectron2_check
from mcl_jax.convert.finetuning import configuration, expected, traps
from mcl_jax.convert.names import architectures
from mcl_jax.convert.targets import detectron2_config, mmdet

FPN, C4 = "mask_rcnn_R_50_FPN_1x.yaml", "mask_rcnn_R_50_C4_1x.yaml"
METHODS = {
    "": FPN,
    "supervised": FPN,
    "c4": C4,
    "byol": C4,
    "moco": C4,
    "detco": C4,
    "vanilla": C4,
    "supervised,c4": C4,
}


def settings_of(text, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return configuration.read(path)


@pytest.fixture(scope="module")
def shapes():
    arrays = arrays_of("detectron2", random_state(R50, 0), meta_of(R50))
    return {name: x.shape for name, x in arrays.items()}


@pytest.mark.parametrize("variant, name", METHODS.items())
def test_each_method_gets_the_detector_that_its_weights_fill(variant, name, shapes, tmp_path):
    """Nothing of what the detector could take starts anew, and no trap is left."""
    config = program.plain_config(mcl.get_config(variant))
    a, parts = architectures.from_config(config), architectures.detector_parts(config)
    assert detectron2_config.name(a, parts) == name
    settings = settings_of(detectron2_config.text(a, "a.pkl", parts), tmp_path)
    starts = {"fpn": "fpn_", "head": "box_head."}
    held = {
        key: shape
        for key, shape in shapes.items()
        if next((part for part, start in starts.items() if key.startswith(start)), "backbone")
        in parts
    }
    assert traps.find(settings, traps.holding(held)) == []
    model = expected.parts(settings)
    assert detectron2_check.loaded(model, held) == [
        f"{len(held)} of {len(model)} arrays come from the file, 0 of it are not used"
    ]
    assert len(held) == len(model)


def test_a_narrow_backbone_alone_of_basic_blocks_gets_an_fpn_with_a_head_of_detectron2(tmp_path):
    text = detectron2_config.text(R18, "a.pkl", ("backbone",))
    assert detectron2_config.name(R18, ("backbone",)) == "mask_rcnn_R_18_FPN_1x.yaml"
    settings = settings_of(text, tmp_path)
    head = ("NUM_CONV", "NUM_FC", "NORM")
    assert [settings[f"MODEL.ROI_BOX_HEAD.{key}"] for key in head] == [0, 2, ""]
    assert settings["MODEL.FPN.OUT_CHANNELS"] == 256


@pytest.mark.parametrize("parts", ["backbone,fpn,head", "backbone,fpn", "backbone"])
@pytest.mark.parametrize("folded", [False, True])
def test_the_written_file_passes_the_check_with_the_written_weights(parts, folded, tmp_path):
    export_to(
        "detectron2",
        random_state(NARROW_R50, 0),
        meta_of(NARROW_R50),
        tmp_path,
        parts,
        folded=folded,
    )
    (path,) = tmp_path.glob("*.yaml")
    settings = configuration.read(path)
    shapes, _ = detectron2_check.read_weights(tmp_path / "mcl_resnet50.pkl")
    assert traps.find(settings, traps.holding(shapes)) == []
    lines = detectron2_check.loaded(expected.parts(settings), shapes)
    assert lines[0].endswith(", 0 of it are not used") and len(lines) == 1
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["target"] == "detectron2"


def test_mmdetection_gets_its_own_head_where_none_is_pretrained():
    state = random_state(R50, 0)
    for parts, convs in (("backbone,fpn,head", True), ("backbone", False)):
        (text,) = mmdet.files(job_of("mmdet", state, meta_of(R50), parts)).values()
        assert ("num_shared_convs=4" in text) is convs
        compile(text, "config.py", "exec")
        assert convs or "bbox_head=dict(in_channels=256)" in text
