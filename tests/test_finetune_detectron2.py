"""scripts/finetune_detectron2.py without Detectron2: weights and the detector that is to take them.

What the real library makes of it: tests/test_on_detectron2.py. Shapes: OIHW and [C].
"""

from types import SimpleNamespace

import numpy as np
import pytest
from convert_states import R50, arrays_of, job_of, meta_of, model_keys
from detectron2_kit import C4, FPN, KIT, RETINANET

from mcl_jax.convert import transform
from mcl_jax.convert.checks import detectron2_check, forward
from mcl_jax.convert.files import formats, strict
from mcl_jax.convert.finetuning import (
    command,
    configuration,
    datasets,
    expected,
    library,
    task,
)
from mcl_jax.convert.names import table
from mcl_jax.convert.targets import detectron2_config
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError


def zeros(a):
    """A state: only names and shapes matter here."""
    rows = table.online(a) + table.target(a) + table.predictor(a, 4)
    return strict.unflatten({t.source: np.zeros(t.shape, np.float32) for t in rows})


@pytest.fixture(scope="module")
def weights():
    arrays = arrays_of("detectron2", zeros(R50), meta_of(R50))
    return {name: x.shape for name, x in arrays.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder of plain.pkl, folded.pkl and head.pkl, as exported, and of the folded file's YAML."""
    folder, state = tmp_path_factory.mktemp("files"), zeros(R50)
    plain = arrays_of("detectron2", state, meta_of(R50))
    job = job_of("detectron2", state, meta_of(R50), folded=True)
    folded_state = transform.fold(state, job.parts, forward.EPSILON)
    folded = TARGETS["detectron2"].layout(job).to_file(folded_state, "the checkpoint")
    head = {name: x for name, x in plain.items() if name.startswith("box_head.")}
    for name, arrays in (("plain", plain), ("folded", folded), ("head", head)):
        formats.write_pickle(folder / f"{name}.pkl", arrays, {})
    text = detectron2_config.text(R50, "folded.pkl", job.parts, folded=True)
    (folder / "folded.yaml").write_text(text)
    return folder


def check(*arguments):
    """`--check`, in this process."""
    command.run(task.parse("", [*map(str, arguments), "--check"]))


def one_line(error):
    assert "\n" not in str(error) and len(str(error)) < 500
    return str(error)


@pytest.mark.parametrize(
    "path, model, options",
    [
        (FPN, "mask_rcnn_fpn_bn4conv1fc", ()),
        (C4, "mask_rcnn_c4_bn", ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")),
        (RETINANET, "retinanet_fpn_bn", ()),
    ],
)
def test_what_is_foreseen_is_what_detectron2_builds(path, model, options):
    real = {
        key: x for key, x in model_keys(model).items() if not key.endswith("num_batches_tracked")
    }
    found = expected.parts(configuration.read(path, options))
    assert found == {key: real[key] for key in found}
    starts = ("backbone.", "roi_heads.res5.", "roi_heads.box_head.conv")
    rest = {key for key in real if key.startswith(starts)} - set(found)
    assert all(key.startswith("backbone.top_block.") for key in rest)


def test_foreseen_layers_have_biases_where_there_is_no_norm():
    options = ("MODEL.FPN.NORM", "", "MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.RESNETS.DEPTH", "18")
    found = expected.parts(
        configuration.read(FPN, (*options, "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"))
    )
    assert found["backbone.fpn_lateral5.bias"] == (256,)
    assert "backbone.fpn_lateral5.norm.weight" not in found
    head = {key.rsplit("conv1.", 1)[1] for key in found if "box_head.conv1." in key}
    assert head == {"weight", "norm.weight", "norm.bias"}
    assert found["backbone.bottom_up.res3.0.shortcut.weight"] == (128, 64, 1, 1)
    assert "backbone.bottom_up.res2.0.shortcut.weight" not in found


def test_the_check_is_silent_where_weights_and_file_match(files, capsys):
    check(FPN, "--weights", files / "plain.pkl")
    check(files / "folded.yaml", "--weights", files / "folded.pkl")
    said = capsys.readouterr()
    assert "WARNING" not in said.out and said.err == ""
    assert "325 of 325 arrays come from the file" in said.out
    assert "289 of 289 arrays come from the file" in said.out


@pytest.mark.parametrize(
    "file, options, words",
    [
        ("folded", (), "MODEL.FPN.NORM must be '' (no norm), for the file holds biases"),
        ("folded", ("MODEL.FPN.NORM", ""), "MODEL.ROI_BOX_HEAD.NORM must be '' (no norm)"),
        ("plain", ("MODEL.FPN.NORM", ""), "MODEL.FPN.NORM must be 'SyncBN', for the file holds"),
        ("plain", ("MODEL.ROI_BOX_HEAD.NORM", "GN"), "MODEL.ROI_BOX_HEAD.NORM must be 'SyncBN'"),
        ("plain", ("MODEL.RESNETS.NORM", "GN"), "MODEL.RESNETS.NORM must be 'SyncBN'"),
        (
            "plain",
            ("MODEL.RESNETS.DEPTH", "101"),
            "a ResNet-50, the configuration builds a ResNet-101",
        ),
        (
            "plain",
            ("MODEL.RESNETS.WIDTH_PER_GROUP", "32"),
            "of another shape: backbone.bottom_up.res2",
        ),
        (
            "plain",
            ("MODEL.RESNETS.DEPTH", "49"),
            "MODEL.RESNETS.DEPTH is 49, must be one of 18, 34",
        ),
        (
            "head",
            (),
            "holds no detectron2 detector that is known here; it begins with model.box_head",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_key_that_would_do(files, file, options, words):
    with pytest.raises(UserError) as caught:
        check(FPN, "--weights", files / f"{file}.pkl", *options)
    assert words in one_line(caught.value)


def test_a_deeper_network_than_the_configuration_s_is_refused(weights):
    settings = configuration.read(FPN, ("MODEL.RESNETS.DEPTH", "101"))
    deep = expected.parts(settings)
    with pytest.raises(UserError, match="holds a ResNet-101, the configuration builds a ResNet-50"):
        detectron2_check.loaded(expected.parts(configuration.read(FPN)), deep)
    assert detectron2_check.loaded(deep, deep)[0].startswith(f"{len(deep)} of {len(deep)} arrays")


def test_layers_from_scratch_have_their_whole_names(weights):
    lines = detectron2_check.loaded(model_keys("retinanet_fpn_bn"), weights)
    assert "box_head.conv1, " in lines[0] and "fpn_lateral2" in lines[0]
    assert "backbone.top_block.p6, backbone.top_block.p7, head.bbox_pred" in lines[1]


@pytest.mark.parametrize(
    "options, trap",
    [
        (("MODEL.ROI_MASK_HEAD.NORM", ""), "MODEL.ROI_MASK_HEAD.NORM is '', must be 'SyncBN'"),
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT is 'BGR', must be 'RGB'"),
        (("MODEL.ROI_BOX_HEAD.NUM_CONV", "0"), "MODEL.ROI_BOX_HEAD.NUM_CONV is 0, must be 4"),
        (
            ("MODEL.RESNETS.STRIDE_IN_1X1", "True"),
            "MODEL.RESNETS.STRIDE_IN_1X1 is True, must be False",
        ),
    ],
)
def test_traps_among_the_options_are_named(files, options, trap, capsys):
    check(FPN, "--weights", files / "plain.pkl", *options)
    assert f"WARNING: {trap}" in capsys.readouterr().out


def test_a_folder_of_weights_is_answered_with_what_is_in_it(files):
    with pytest.raises(UserError, match=r"is a folder, give a file in it: folded.pkl, head.pkl"):
        check(FPN, "--weights", files)
    with pytest.raises(UserError, match=r"is a folder, without a .pkl or .pth in it"):
        check(FPN, "--weights", KIT)


def test_tilde_is_the_home_folder(files, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(files))
    check(FPN, "--weights", "~/plain.pkl")
    assert "325 of 325" in capsys.readouterr().out
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets.root() == files / "data"


@pytest.fixture
def bench(monkeypatch, tmp_path, weights):
    """`command.check_all` on a model whose FPN has another shape than the file's backbone."""
    cfg = SimpleNamespace(
        OUTPUT_DIR=str(tmp_path / "out"),
        DATASETS=SimpleNamespace(TRAIN=(), TEST=()),
        SOLVER=SimpleNamespace(IMS_PER_BATCH=2, REFERENCE_WORLD_SIZE=0),
    )
    monkeypatch.setattr(library, "defaults", configuration.known_defaults)
    monkeypatch.setattr(library, "configured", lambda task: cfg)
    monkeypatch.setattr(library, "model_shapes", lambda cfg: model_keys("mask_rcnn_c4_bn"))
    monkeypatch.setattr(library, "machine_problem", lambda cfg, task: None)
    for name in ("demand_known", "demand_readers", "demand_files", "demand_evaluators"):
        monkeypatch.setattr(datasets, name, lambda names: None)
    full = {f"backbone.bottom_up.{name}": np.zeros(shape) for name, shape in weights.items()}
    formats.write_pickle(tmp_path / "full.pkl", full, {})
    return tmp_path


@pytest.mark.parametrize(
    "flags", [(), ("--resume",), ("--eval-only",), ("--resume", "--eval-only")]
)
def test_weights_are_looked_at_whenever_they_are_what_gets_loaded(bench, flags, capsys):
    arguments = [str(C4), "--weights", str(bench / "full.pkl"), *flags]
    with pytest.raises(UserError, match="do not fill the backbone"):
        command.check_all(task.parse("", arguments))
    (bench / "out").mkdir(exist_ok=True)
    (bench / "out" / "last_checkpoint").write_text("model_0000009.pth")
    if "--resume" not in flags:
        with pytest.raises(UserError, match="do not fill the backbone"):
            command.check_all(task.parse("", arguments))
        return
    with pytest.raises(UserError, match="names model_0000009.pth, which is not there"):
        command.check_all(task.parse("", arguments))
    (bench / "out" / "model_0000009.pth").touch()
    lines = command.check_all(task.parse("", arguments))
    assert lines[-1] == (
        f"goes on from {bench}/out/model_0000009.pth; {bench}/full.pkl is not read"
    )


def shapes_without(weights, *names):
    return {name: shape for name, shape in weights.items() if name not in names}


def test_weights_that_fill_the_backbone_in_part_are_refused(weights):
    model = model_keys("mask_rcnn_fpn_bn4conv1fc")
    with pytest.raises(UserError, match="1 arrays are missing, first .*res4.2.conv1.weight"):
        detectron2_check.loaded(model, shapes_without(weights, "res4.2.conv1.weight"))
    with pytest.raises(UserError, match="of another shape: .*stem.conv1.weight"):
        detectron2_check.loaded(model, weights | {"stem.conv1.weight": (32, 3, 7, 7)})
    full = {f"backbone.bottom_up.{name}": shape for name, shape in weights.items()}
    with pytest.raises(UserError, match="do not fill the backbone"):
        detectron2_check.loaded(model_keys("mask_rcnn_c4_bn"), full)
    with pytest.raises(UserError, match="conv1 would be loaded in part: .* another shape"):
        detectron2_check.loaded(model, weights | {"box_head.conv1.weight": (1, 1, 3, 3)})
    narrow = {n: (64, *x[1:]) for n, x in weights.items() if n.startswith("box_head.conv1.")}
    other = detectron2_check.loaded(model, weights | narrow)
    assert "NOT loaded, another shape: roi_heads.box_head.conv1.weight" in other
