"""Bad input to convert/, both formats: each culprit is named in one line, nothing is written.

Shapes: here HWIO and [in, out]; the authors' arrays OIHW and [out, in].
"""

import builtins
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from convert_states import (
    R18,
    arrays_of,
    as_tensors,
    config_file,
    export,
    export_to,
    make_arrays,
    meta_of,
    optimizer_dict,
    random_state,
    write_npz,
)
from torch_or_skip import need_torch, torch

from mcl_jax.convert.command import main
from mcl_jax.convert.files import formats, strict
from mcl_jax.convert.names import table
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture

LEAVES = (
    "params/encoder/backbone/stem/kernel",
    "params/encoder/backbone/res3/block0/shortcut/kernel",
    "params/encoder/fpn/lateral2/kernel",
    "params/encoder/head/conv1/norm/scale",
    "batch_stats/encoder/backbone/res5/block1/conv2/norm/var",
)
NAMES = (
    "encoder_q.0.layer3.0.downsample.0.weight",
    "encoder_k.0.layer1.0.bn1.running_mean",
    "encoder_q.1.fpn_convs.2.bn.bias",
    "encoder_k.2.mlp.4.running_var",
    "head.predictor.1.mlp.3.weight",
)


def fails(capsys, *arguments):
    """Runs the command, which must exit with 2 and one line; returns that line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    return err


def run_convert(*arguments):
    """`python -m convert`, which must exit with 2 and one line on stderr; returns that line."""
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    return done.stderr


def mutate(flat, leaf, kind):
    x = flat.pop(leaf)
    if kind == "rename":
        flat[leaf + "s"] = x
    elif kind == "transpose":
        flat[leaf] = x.transpose() if x.ndim > 1 else x[:, None]
    elif kind == "nan":
        flat[leaf] = np.full_like(x, np.nan)
    elif kind == "half":
        flat[leaf] = x.astype(np.float16)
    elif kind == "extra":
        flat[leaf] = x
        flat[f"{leaf.rsplit('/', 1)[0]}/other"] = x


@pytest.mark.parametrize("kind", ["drop", "rename", "transpose", "nan", "half", "extra"])
@pytest.mark.parametrize("leaf", LEAVES)
def test_a_damaged_leaf_is_named_and_nothing_is_written(tmp_path, leaf, kind):
    flat = strict.flatten(random_state(R18, 4))
    mutate(flat, leaf, kind)
    culprit = f"{leaf.rsplit('/', 1)[0]}/other" if kind == "extra" else leaf
    with pytest.raises(UserError, match=culprit):
        export_to("detectron2", strict.unflatten(flat), meta_of(R18), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_exported_tensor_is_missed_and_all_at_once():
    flat = strict.flatten(random_state(R18, 5))
    rows = [t for t in table.online(R18) if t.detectron2]
    for row in rows:
        rest = {source: x for source, x in flat.items() if source != row.source}
        with pytest.raises(UserError, match=f"1 problem: missing {row.source}$"):
            arrays_of("detectron2", strict.unflatten(rest), meta_of(R18))
    rest = {source: x for source, x in flat.items() if source not in LEAVES}
    with pytest.raises(UserError) as caught:
        arrays_of("detectron2", strict.unflatten(rest), meta_of(R18))
    assert all(leaf in str(caught.value) for leaf in LEAVES)


def test_another_architecture_than_the_config_says_is_refused(tmp_path):
    wide = Architecture(**(vars(R18) | {"fpn_channels": 24}))
    with pytest.raises(UserError, match="fpn/lateral2/kernel has shape"):
        export_to("detectron2", random_state(R18, 6), meta_of(wide), tmp_path / "out")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(path, arrays, about):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    full = replace(TARGETS["detectron2"], format=formats.PICKLE._replace(write=fail))
    monkeypatch.setitem(TARGETS, "detectron2", full)
    with pytest.raises(OSError, match="no space"):
        export(R18, random_state(R18, 7), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_not_a_checkpoint_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "notes").mkdir()
    err = run_convert(tmp_path / "notes", "--to", "detectron2", "--out", tmp_path / "out")
    assert "is not a checkpoint" in err and str(tmp_path / "notes") in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["drop", "rename", "transpose", "nan", "extra"])
def test_all_damage_is_named_at_once(tmp_path, capsys, kind):
    arrays, culprits = make_arrays(R18), []
    for name in NAMES:
        x = arrays.pop(name)
        culprits.append(name)
        if kind == "rename":
            arrays[name + "_v2"] = x
        elif kind == "transpose":
            arrays[name] = x.swapaxes(0, 1) if x.ndim > 1 else x[None]
        elif kind == "nan":
            arrays[name] = np.where(x > 0, np.nan, x)
        elif kind == "extra":
            arrays[name] = x
            arrays[name + ".extra"] = x
            culprits[-1] = name + ".extra"
    path = write_npz(tmp_path / "a.npz", arrays)
    err = fails(capsys, path, "--from", "mcl-official", "--out", tmp_path / "run")
    assert all(name in err for name in culprits)
    assert f"{10 if kind == 'rename' else 5} problems" in err
    assert not (tmp_path / "run").exists()


def test_momentum_of_another_number_of_parameters_is_refused(tmp_path, capsys):
    arrays = make_arrays(R18)
    saved, _ = optimizer_dict(arrays, ("encoder_q",))
    content = {"state_dict": as_tensors(arrays), "meta": {"iter": 1}, "optimizer": saved}
    torch.save(content, tmp_path / "a.pth")
    err = fails(capsys, tmp_path / "a.pth", "--from", "mcl-official", "--out", tmp_path / "run")
    assert "the optimizer has 96 parameters, the state_dict 216" in err
    assert not (tmp_path / "run").exists()


def test_missing_momentum_is_named(tmp_path, capsys):
    arrays = make_arrays(R18)
    saved, _ = optimizer_dict(arrays, ("encoder_q", "head"))
    del saved["state"][0]
    torch.save({"state_dict": as_tensors(arrays), "optimizer": saved}, tmp_path / "a.pth")
    err = fails(capsys, tmp_path / "a.pth", "--from", "mcl-official", "--out", tmp_path / "run")
    assert "missing encoder_q.0.conv1.weight" in err


def test_second_names_of_the_backbone_must_agree(tmp_path, capsys):
    arrays = make_arrays(R18)
    arrays["backbone.conv1.weight"] = arrays["encoder_q.0.conv1.weight"] + 1
    path = write_npz(tmp_path / "a.npz", arrays)
    err = fails(capsys, path, "--from", "mcl-official", "--out", tmp_path / "run")
    assert "backbone.conv1.weight" in err


def test_config_that_does_not_fit_is_refused_key_by_key(tmp_path, capsys):
    path = write_npz(tmp_path / "a.npz", make_arrays(R18))
    config_path = config_file(tmp_path, vars(R18) | {"width": 16, "predictor_hidden": 7})
    arguments = (path, "--from", "mcl-official", "--out", tmp_path / "run", "--config", config_path)
    err = fails(capsys, *arguments)
    assert "model.width is 16 in the configuration, 8 in the file" in err
    assert "model.predictor_hidden is 7 in the configuration, 24 in the file" in err
    assert "model.backbone" not in err


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.npz", b"PK\x03\x04 not a zip", "is not a readable .npz"),
        ("a.pth", b"not a pickle", "cannot be read with torch.load(weights_only=True)"),
        ("a.bin", b"", "a.bin is empty, as after a download"),
        ("missing.npz", None, "does not exist"),
    ],
)
def test_unreadable_files(tmp_path, capsys, name, content, message):
    if name == "a.pth":
        need_torch()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    err = fails(capsys, tmp_path / name, "--from", "mcl-official", "--out", tmp_path / "run")
    assert message in err


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_malicious_pickle_is_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "a.pth")
    fails(capsys, tmp_path / "a.pth", "--from", "mcl-official", "--out", tmp_path / "run")
    np.savez(tmp_path / "b.npz", x=np.array([Malicious()], dtype=object))
    fails(capsys, tmp_path / "b.npz", "--from", "mcl-official", "--out", tmp_path / "run")
    assert not (tmp_path / "owned").exists()


def test_other_networks_are_refused(tmp_path, capsys):
    path = write_npz(tmp_path / "a.npz", {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    err = fails(capsys, path, "--from", "mcl-official", "--out", tmp_path / "run")
    assert "not a checkpoint of the authors' code" in err and "encoder_q.0.bn1.weight" in err
    arrays = {n: x for n, x in make_arrays(R18).items() if ".layer4.1." not in n}
    path = write_npz(tmp_path / "b.npz", arrays)
    err = fails(capsys, path, "--from", "mcl-official", "--out", tmp_path / "run")
    assert "(2, 2, 2, 1) basic blocks" in err and "resnet18" in err


def test_without_torch_the_extra_is_named(tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    torch.save({}, tmp_path / "a.pth")
    monkeypatch.setattr(builtins, "__import__", without_torch)
    err = fails(capsys, tmp_path / "a.pth", "--from", "mcl-official", "--out", tmp_path / "run")
    assert 'pip install "mcl_jax[torch]"' in err


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    assert "required" in fails(capsys, "x", "--out", "y")
    path = write_npz(tmp_path / "a.npz", make_arrays(R18))
    main([str(path), "--from", "mcl-official", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    run = tmp_path / "run"
    again = fails(capsys, path, "--from", "mcl-official", "--out", run)
    assert "already holds checkpoints" in again
    assert ".npz or .pth" in fails(capsys, run, "--to", "mcl-official", "--out", tmp_path / "x.bin")
    err = fails(capsys, run, "--to", "detectron2", "--out", tmp_path / "d", "--config", "c.py")
    assert "--config belongs to --from" in err


def test_corrupt_file_is_one_line_and_exit_code_2(tmp_path):
    path = write_npz(tmp_path / "a.npz", make_arrays(R18))
    path.write_bytes(path.read_bytes()[:-100])
    err = run_convert(path, "--from", "mcl-official", "--out", tmp_path / "run")
    assert "a.npz" in err and not (tmp_path / "run").exists()
