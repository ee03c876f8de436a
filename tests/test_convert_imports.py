"""--from: round trips of every target, where weights arrive, and files that are refused.

Shapes: here HWIO and [in, out]; files as the libraries have them.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_states import arrays_of, full_meta_of, layout_of, need_torch_for, random_state
from test_convert_detectors import tiny_swin
from test_convert_refusals import fails
from torch_or_skip import need_torch, torch
from weights_of_projects import behind

from mcl_jax.convert.command import main
from mcl_jax.convert.files import formats
from mcl_jax.convert.names.layouts import networks
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.models.backbone import Architecture
from mcl_jax.runtime import checkpoint
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.state import TrainState

pytestmark = pytest.mark.usefixtures("compile_cache")
R10 = Architecture("resnet10", 4, 8, 2, 16, 8, 16, "fpn", 0.0)
TINY = Architecture("swin_tiny", 8, 8, 2, 16, 8, 16, "fpn", 0.0)
CONFIG = """
from mcl_jax.configs import base

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
    layout = layout_of(target, state, full_meta_of(a))
    model = layout.to_file(state, "the checkpoint")
    back = layout.from_file(model, "the file")
    arrays = networks(state)
    assert back and all(np.array_equal(x, arrays[path]) for path, x in back.items())
    again = {name: entry.to_file(back[entry.source]) for name, entry in layout.named.items()}
    assert all(x.tobytes() == model[name].tobytes() for name, x in again.items())


@pytest.mark.parametrize("target, a, parts", ROUNDS)
def test_out_and_in_and_out_again_is_the_same_arrays(tmp_path, target, a, parts, capsys):
    need_torch_for(target)
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
    for entry in layout_of(target, state, full_meta_of(a), parts).named.values():
        np.testing.assert_array_equal(theirs[entry.source], ours[entry.source])
        if target != "safetensors":  # which holds a target network of its own
            copy = in_target(entry.source)
            np.testing.assert_array_equal(theirs[copy], ours[entry.source])
    assert "go on with" in capsys.readouterr().out


def test_supervised_weights_start_a_run_of_the_base_configuration(tmp_path, capsys):
    """Without --config the networks' sizes are the file's, and the command to go on says so.

    The file is one of MoCo, with two networks; --network chooses.
    """
    need_torch()
    state = saved(tmp_path / "run", R10)
    main([str(tmp_path / "run"), "--to", "torchvision", "--out", str(tmp_path / "out")])
    path = tmp_path / "out" / "mcl_resnet10.pth"
    content = torch.load(path, weights_only=True)
    content |= {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}
    slower = {name: x + 1 for name, x in content.items()}
    networks_of_moco = behind("module.encoder_k.", slower) | behind("module.encoder_q.", content)
    torch.save({"state_dict": networks_of_moco, "epoch": 200}, path)
    flags = ["--network", "encoder_q", "--out", str(tmp_path / "back")]
    main([str(path), "--from", "torchvision", *flags])
    out = capsys.readouterr().out
    assert "names are taken from behind 'state_dict.module.encoder_q.'" in out
    assert "other networks of the file, not read: encoder_k" in out
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
    with Checkpointer(tmp_path / "run", keep=3) as checkpointer:
        for step in (1, 2):
            params = jax.tree.map(lambda x, k=step: x * k, trees["params"])
            state = TrainState(
                step=jnp.int32(step), opt_state={"n": jnp.int32(0)}, memory={}, **trees
            )
            checkpointer.save(state.replace(params=params), {"config": full_meta_of(R10)["config"]})
            checkpointer.wait()
    flags = ["--to", "detectron2", "--average", "2", "--divide-weights", "2"]
    main([str(tmp_path / "run"), *flags, "--out", str(tmp_path / "out")])
    model = formats.read_pickle(weights(tmp_path / "out"))
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
    assert "--average: only with --to" in err
