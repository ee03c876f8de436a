"""--from: round trips of every target, where weights arrive, and files that are refused.

Shapes: here HWIO and [in, out]; files as the libraries have them.
"""

import collections
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_states import arrays_of, export_to, full_meta_of, random_state, view_of
from test_convert_detectors import tiny_swin
from test_convert_refusals import Malicious, fails

from convert import files
from convert.__main__ import main
from convert.targets import TARGETS
from convert.views import networks
from mcl_jax import checkpoint
from mcl_jax.models.backbone import Architecture
from mcl_jax.state import TrainState

R10 = Architecture("resnet10", 4, 8, 2, 16, 8, 16, "fpn", 0.0)
TINY = Architecture("swin_tiny", 8, 8, 2, 16, 8, 16, "fpn", 0.0)
CONFIG = """
from configs import base

def get_config():
    config = base.get_config()
    config.model.update({model})
    config.data.image_size = 64
    config.{more}
    return config
"""


def config_file(folder, a, more="seed = 5"):
    path = folder / "own.py"
    path.write_text(CONFIG.format(model=vars(a), more=more))
    return path


def saved(folder, a, seed=0):
    """A checkpoint in a workdir, and its state."""
    state = tiny_swin(seed, a) if "swin" in a.backbone else random_state(a, seed)
    if "swin" in a.backbone:
        state |= {"target_params": state["params"]["encoder"]}
        state |= {"target_batch_stats": state["batch_stats"]["encoder"]}
    trees = jax.tree.map(jnp.asarray, state)
    full = TrainState(step=jnp.int32(3), opt_state={"n": jnp.int32(3)}, memory={}, **trees)
    checkpoint.write(folder, full, {"config": full_meta_of(a)["config"]})
    return state


def weights(folder):
    """The one file of weights in an export."""
    return next(
        path for path in folder.iterdir() if path.suffix in (".pkl", ".pth", ".safetensors")
    )


def in_target(path):
    """Where the target network has its copy of an array of the online encoder."""
    path = path.replace("params/encoder/", "target_params/")
    return path.replace("batch_stats/encoder/", "target_batch_stats/")


ROUNDS = [
    ("detectron2", R10, None),
    ("torchvision", R10, None),
    ("torchvision", R10, "all"),
    ("timm", R10, None),
    ("mmdet", R10, "backbone,head"),
    ("safetensors", R10, None),
    ("mmdet", TINY, None),
]


@pytest.mark.parametrize(
    "target, a",
    [*((t, R10) for t in TARGETS), *((t, TINY) for t in ("torchvision", "timm", "mmdet"))],
)
def test_views_are_their_own_inverses(target, a):
    """Every target that has the network, whole; without files and states around it."""
    state = tiny_swin(0, a) if a is TINY else random_state(a, 0)
    view = view_of(target, state, full_meta_of(a))
    model = view.to_file(state, "the checkpoint")
    back = view.from_file(model, "the file")
    arrays = networks(state)
    assert back and all(np.array_equal(x, arrays[path]) for path, x in back.items())
    again = {name: entry.to_file(back[entry.source]) for name, entry in view.named.items()}
    assert all(x.tobytes() == model[name].tobytes() for name, x in again.items())


@pytest.mark.parametrize("target, a, parts", ROUNDS)
def test_out_and_in_and_out_again_is_the_same_arrays(tmp_path, target, a, parts, capsys):
    state = saved(tmp_path / "run", a)
    flags = ["--to", target] + (["--parts", parts] if parts else [])
    main([str(tmp_path / "run"), *flags, "--out", str(tmp_path / "out")])
    file = weights(tmp_path / "out")
    own = ["--config", str(config_file(tmp_path, a))]
    main([str(file), "--from", target, "--out", str(tmp_path / "back"), *own])
    main([str(tmp_path / "back"), *flags, "--out", str(tmp_path / "again")])
    first, second = (
        TARGETS[target].format.read(path) for path in (file, weights(tmp_path / "again"))
    )
    assert list(first) == list(second)
    for name, x in first.items():
        assert x.dtype == second[name].dtype and x.tobytes() == second[name].tobytes()
    back, meta = checkpoint.read(tmp_path / "back")
    assert meta["step"] == 0 and meta["origin"] == f"{target}:{file.name}"
    ours, theirs = networks(state), networks(back)
    for entry in view_of(target, state, full_meta_of(a), parts).named.values():
        np.testing.assert_array_equal(theirs[entry.source], ours[entry.source])
        if target != "safetensors":  # which holds a target network of its own
            copy = in_target(entry.source)
            np.testing.assert_array_equal(theirs[copy], ours[entry.source])
    assert "go on with" in capsys.readouterr().out


def test_supervised_weights_start_a_run_of_the_base_configuration(tmp_path, capsys):
    """Without --config the networks' sizes are the file's, and the command to go on says so."""
    state = saved(tmp_path / "run", R10)
    main([str(tmp_path / "run"), "--to", "torchvision", "--out", str(tmp_path / "out")])
    path = tmp_path / "out" / "mcl_resnet10.pth"
    content = torch.load(path, weights_only=True)
    content |= {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}
    torch.save(content, path)
    main([str(path), "--from", "torchvision", "--out", str(tmp_path / "back")])
    out = capsys.readouterr().out
    assert "not read: 2 arrays (fc.weight, fc.bias)" in out
    assert "--config.model.backbone=resnet10 --config.model.width=4" in out
    back, meta = checkpoint.read(tmp_path / "back")
    assert meta["config"]["model"]["width"] == 4
    read, before = networks(back), networks(state)
    for name in (
        n
        for n in before
        if n.startswith(("params/encoder/backbone", "batch_stats/encoder/backbone"))
    ):
        np.testing.assert_array_equal(read[name], before[name])
        copy = name.replace("params/encoder", "target_params").replace(
            "batch_stats/encoder", "target_batch_stats"
        )
        np.testing.assert_array_equal(read[copy], before[name])


def test_a_detector_trained_with_detectron2_comes_back_by_its_long_names(tmp_path):
    state = random_state(R10, 1)
    model = arrays_of("detectron2", state, full_meta_of(R10))
    heads = {"box_head": "roi_heads."}
    long = {
        heads.get(n.split(".")[0], "backbone.bottom_up." if "fpn" not in n else "backbone.") + n: x
        for n, x in model.items()
    }
    long["proposal_generator.rpn_head.conv.weight"] = np.zeros(3, np.float32)
    content = {
        "model": long,
        "__author__": "someone",
        "optimizer": {"lr": [0.1]},
        "iteration": 90000,
    }
    (tmp_path / "final.pkl").write_bytes(pickle.dumps(content))
    flags = ["--config", str(config_file(tmp_path, R10)), "--out", str(tmp_path / "back")]
    main([str(tmp_path / "final.pkl"), "--from", "detectron2", *flags])
    read, before = (networks(s) for s in (checkpoint.read(tmp_path / "back")[0], state))
    for part in ("backbone", "fpn", "head"):
        names = [n for n in before if n.startswith(f"params/encoder/{part}/")]
        assert names and all(np.array_equal(read[n], before[n]) for n in names)


def test_averages_and_divisions_of_a_run(tmp_path, capsys):
    trees = jax.tree.map(jnp.asarray, random_state(R10, 0))
    with checkpoint.Checkpointer(tmp_path / "run", keep=3) as checkpointer:
        for step in (1, 2):
            params = jax.tree.map(lambda x, k=step: x * k, trees["params"])
            state = TrainState(
                step=jnp.int32(step), opt_state={"n": jnp.int32(0)}, memory={}, **trees
            )
            checkpointer.save(state.replace(params=params), {"config": full_meta_of(R10)["config"]})
            checkpointer.wait()
    flags = ["--to", "detectron2", "--average", "2", "--divide-weights", "2"]
    main([str(tmp_path / "run"), *flags, "--out", str(tmp_path / "out")])
    model = files.read_pickle(weights(tmp_path / "out"))
    kernel = np.asarray(trees["params"]["encoder"]["backbone"]["stem"]["kernel"])
    expected = kernel.transpose(3, 2, 0, 1) * 1.5 / 2  # the mean of one and two times it, halved
    np.testing.assert_allclose(model["stem.conv1.weight"], expected, rtol=1e-6)
    capsys.readouterr()
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "the mean of 2 checkpoints, of steps 2, 1" in text and "divided by 2" in text
    run, out = tmp_path / "run", tmp_path / "no"
    err = fails(capsys, run, "--to", "timm", "--average", 3, "--out", out)
    assert "holds 2 checkpoints, 3 were asked for" in err and not out.exists()
    assert "must be above 0" in fails(
        capsys, run, "--to", "timm", "--divide-weights", 0, "--out", out
    )
    err = fails(capsys, run, "--to", "mcl-official", "--fold-norms", "--out", tmp_path / "a.npz")
    assert "mcl-official is always whole" in err
    err = fails(capsys, run, "--from", "timm", "--average", 2, "--out", out)
    assert "--average: for --to alone" in err


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
        read = files.read_pickle(tmp_path / "a.pkl")
        assert all(np.array_equal(read[name], x) for name, x in arrays.items())


@pytest.mark.parametrize(
    "origin, name, content, message",
    [
        ("detectron2", "a.pkl", b"no pickle", "is not a readable pickle"),
        ("detectron2", "a.pkl", pickle.dumps([1]), "holds a list, not a dict of arrays"),
        ("detectron2", "a.pkl", pickle.dumps({"model": {"x": 3}}), "has no array under x"),
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
            "holds no detectron2 detector that is known here; it begins with y",
        ),
        ("torchvision", "a.pth", b"no file of torch", "cannot be read with torch.load"),
        ("safetensors", "a.safetensors", b"nothing", "is not a readable .safetensors"),
        ("timm", "missing.pth", None, "is not a file"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path, capsys, origin, name, content, message):
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
    wide = config_file(tmp_path, Architecture(**(vars(R10) | {"width": 8})))
    err = fails(capsys, path, "--from", "timm", "--out", out, "--config", wide)
    assert "conv1.weight has shape (4, 3, 7, 7), expected (8, 3, 7, 7)" in err
    assert not out.exists()


def test_safetensors_of_others_and_of_another_configuration_are_refused(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"x": np.zeros(3, np.float32)}, {"format": "pt"})
    err = fails(capsys, path, "--from", "safetensors", "--out", tmp_path / "run")
    assert "was not written by --to safetensors" in err
    state = random_state(R10, 0)
    export_to("safetensors", state, full_meta_of(R10), tmp_path / "out")
    wide = config_file(tmp_path, Architecture(**(vars(R10) | {"predictor_hidden": 20})))
    flags = ("--from", "safetensors", "--out", tmp_path / "run", "--config", wide)
    err = fails(capsys, weights(tmp_path / "out"), *flags)
    assert "does not fit the configuration" in err and "predictor/level0/linear1/bias" in err
    arrays = files.read_safetensors(weights(tmp_path / "out"))
    del arrays["params/predictor/level0/linear1/bias"]
    about = files.read_safetensors_about(weights(tmp_path / "out"))
    files.write_safetensors(path, arrays, about)
    err = fails(capsys, path, "--from", "safetensors", "--out", tmp_path / "run")
    assert "missing params/predictor/level0/linear1/bias" in err
    assert not (tmp_path / "run").exists()
