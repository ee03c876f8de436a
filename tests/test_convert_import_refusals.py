"""--from: files that are damaged, unsafe or of another network, each refused in one line.

Shapes: as the libraries have them.
"""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
from convert_states import export_to, full_meta_of, random_state
from test_convert_imports import R10, config_file, weights
from test_convert_refusals import Malicious, fails
from torch_or_skip import need_torch, torch

from mcl_jax.configs import mcl
from mcl_jax.convert.files import formats
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.models.backbone import Architecture


def damaged(model, name, kind):
    """Arrays of a file with one of them damaged."""
    x = model.pop(name)
    if kind == "rename":
        model[name + "2"] = x
    elif kind == "transpose":
        model[name] = np.ascontiguousarray(x.T)
    elif kind == "nan":
        model[name] = np.full_like(x, np.nan)
    return model


@pytest.mark.parametrize("kind", ["drop", "rename", "transpose", "nan"])
@pytest.mark.parametrize(
    "target, name",
    [("detectron2", "res3.0.shortcut.weight"), ("mmdet", "neck.lateral_convs.1.conv.weight")],
)
def test_damage_is_named_and_nothing_is_written(tmp_path, capsys, target, name, kind):
    export_to(target, random_state(R10, 0), full_meta_of(R10), tmp_path / "out")
    path, form = weights(tmp_path / "out"), TARGETS[target].format
    form.write(path, damaged(form.read(path), name, kind), {})
    own = ["--config", config_file(tmp_path, R10)]
    err = fails(capsys, path, "--from", target, "--out", tmp_path / "back", *own)
    assert name in err and not (tmp_path / "back").exists()


def test_files_that_would_run_code_are_refused_before_they_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"model": {"x": Malicious()}, "__author__": "me"})
    )
    err = fails(capsys, "a.pkl", "--from", "detectron2", "--out", "run")
    assert "posix.mkdir, which is neither an array nor a plain container" in err
    torch.save({"state_dict": Malicious()}, tmp_path / "a.pth")
    for origin in ("torchvision", "timm", "mmdet"):
        assert "weights_only=True" in fails(capsys, "a.pth", "--from", origin, "--out", "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl", "a.pth"]


def test_the_pickle_reader_takes_what_detectron2_and_older_pickles_hold(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.asarray(3)}
    content = collections.OrderedDict(model=arrays, __author__="me", n=np.float32(3), b=b"\x80")
    for protocol in (0, 2, 4, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        read = formats.read_pickle(tmp_path / "a.pkl")
        assert all(np.array_equal(read[name], x) for name, x in arrays.items())


@pytest.mark.parametrize(
    "origin, name, content, message",
    [
        ("detectron2", "a.pkl", b"no pickle", "is not a readable pickle"),
        ("detectron2", "a.pkl", pickle.dumps([1]), "holds a list, not a dict of arrays"),
        ("detectron2", "a.pkl", pickle.dumps({"model": {"x": 3}}), "has no array under model.x"),
        (
            "detectron2",
            "a.pkl",
            pickle.dumps({"model": {}, "__author__": "Caffe2"}),
            "with the stride in the 1x1",
        ),
        (
            "detectron2",
            "a.pkl",
            pickle.dumps({"model": {"y": np.zeros(3)}, "__author__": "x"}),
            "holds no detectron2 detector that is known here; it begins with model.y",
        ),
        ("torchvision", "a.pth", b"no file of torch", "cannot be read with torch.load"),
        ("safetensors", "a.safetensors", b"nothing", "is not a readable .safetensors"),
        ("timm", "missing.pth", None, "does not exist; give a file of weights"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, capsys, origin, name, content, message):
    if name == "a.pth":
        need_torch()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    err = fails(capsys, tmp_path / name, "--from", origin, "--out", tmp_path / "run")
    assert message in err and not (tmp_path / "run").exists()


def test_another_network_than_the_configurations_is_refused(tmp_path, capsys):
    export_to("timm", random_state(R10, 0), full_meta_of(R10), tmp_path / "out")
    path, out = tmp_path / "out" / "mcl_resnet10.pth", tmp_path / "run"
    other = config_file(tmp_path, Architecture(**(vars(R10) | {"backbone": "resnet14"})))
    err = fails(capsys, path, "--from", "timm", "--out", out, "--config", other)
    assert "holds a resnet10, model.backbone is 'resnet14' in the configuration" in err
    words = f"{Path(mcl.__file__).with_suffix('.py')}:supervised,swin_t"  # as for pretrain.py
    err = fails(capsys, path, "--from", "timm", "--out", out, "--config", words)
    assert "holds a resnet10, model.backbone is 'swin_t' in the configuration" in err
    err = fails(capsys, path, "--from", "timm", "--out", out, "--config", f"{words},detko")
    assert "unknown word 'detko'" in err
    wide = config_file(tmp_path, Architecture(**(vars(R10) | {"width": 8})))
    err = fails(capsys, path, "--from", "timm", "--out", out, "--config", wide)
    assert "conv1.weight has shape (4, 3, 7, 7), expected (8, 3, 7, 7)" in err
    assert not out.exists()


def test_safetensors_of_others_and_of_another_configuration_are_refused(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    formats.write_safetensors(path, {"x": np.zeros(3, np.float32)}, {"format": "pt"})
    err = fails(capsys, path, "--from", "safetensors", "--out", tmp_path / "run")
    assert "was not written by --to safetensors" in err
    state = random_state(R10, 0)
    export_to("safetensors", state, full_meta_of(R10), tmp_path / "out")
    wide = config_file(tmp_path, Architecture(**(vars(R10) | {"predictor_hidden": 20})))
    flags = ("--from", "safetensors", "--out", tmp_path / "run", "--config", wide)
    err = fails(capsys, weights(tmp_path / "out"), *flags)
    assert "does not fit the configuration" in err and "predictor/level0/linear1/bias" in err
    arrays = formats.read_safetensors(weights(tmp_path / "out"))
    del arrays["params/predictor/level0/linear1/bias"]
    about = formats.read_safetensors_about(weights(tmp_path / "out"))
    formats.write_safetensors(path, arrays, about)
    err = fails(capsys, path, "--from", "safetensors", "--out", tmp_path / "run")
    assert "missing params/predictor/level0/linear1/bias" in err
    assert not (tmp_path / "run").exists()
