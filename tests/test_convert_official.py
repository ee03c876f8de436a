"""The authors' checkpoints: names, round trips and momentum.

Shapes: here HWIO and [in, out]; the authors' OIHW and [out, in].
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from convert_states import (
    LEVELS,
    NARROW_R50,
    R18,
    STEP,
    as_tensors,
    config_file,
    make_arrays,
    optimizer_dict,
    write_npz,
)
from torch_or_skip import need_torch, torch

from mcl_jax import optimizer, program, sharding
from mcl_jax.configs import base
from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.command import main
from mcl_jax.convert.files import strict
from mcl_jax.convert.names import architectures
from mcl_jax.convert.targets import authors, authors_files
from mcl_jax.runtime import checkpoint
from mcl_jax.runtime.checkpointer import Checkpointer
from mcl_jax.settings.records import fill


def load(path, a=R18):
    config = base.get_config()
    config.model.update(vars(a))
    return authors.load(path, config, adopt=False)


def test_names_are_the_authors():
    names = make_arrays(NARROW_R50)
    for name, shape in {
        "encoder_q.0.conv1.weight": (4, 3, 7, 7),
        "encoder_q.0.bn1.running_var": (4,),
        "encoder_q.0.layer1.0.conv3.weight": (16, 4, 1, 1),
        "encoder_q.0.layer1.0.downsample.0.weight": (16, 4, 1, 1),
        "encoder_q.0.layer4.2.bn3.bias": (128,),
        "encoder_k.0.layer2.0.downsample.1.running_mean": (32,),
        "encoder_q.1.lateral_convs.3.conv.weight": (8, 128, 1, 1),
        "encoder_q.1.fpn_convs.0.bn.weight": (8,),
        "encoder_k.2.cls_convs.3.conv.weight": (8, 8, 3, 3),
        "encoder_q.2.mlp.0.weight": (16, 8),
        "encoder_q.2.mlp.1.bias": (16,),
        "encoder_k.2.mlp.3.bias": (12,),
        "encoder_q.2.mlp.4.running_mean": (12,),
        "head.predictor.0.mlp.0.weight": (24, 12),
        "head.predictor.3.mlp.1.running_var": (24,),
        "head.predictor.3.mlp.3.weight": (12, 24),
    }.items():
        assert names[name].shape == shape
    assert "encoder_q.2.mlp.4.weight" not in names  # the last norm has no affine parameters
    assert not any(name.startswith("head.predictor.0.mlp.4") for name in names)
    # ResNet-50: 161 backbone, 24 FPN, 12 head, 6 projector, 6 x 4 predictors; twice the encoder.
    trained = [n for n in names if "running" not in n and not n.startswith("encoder_k.")]
    assert len(trained) == 161 - 2 + 24 + 12 + 6 + 24


def test_layers_arrive_where_they_belong(tmp_path):
    arrays = make_arrays(NARROW_R50)
    state, meta, _ = load(write_npz(tmp_path / "a.npz", arrays), NARROW_R50)
    encoder = state.params["encoder"]
    pairs = (
        (encoder["backbone"]["res3"]["block1"]["conv2"]["kernel"], "encoder_q.0.layer2.1.conv2"),
        (encoder["fpn"]["lateral2"]["kernel"], "encoder_q.1.lateral_convs.0.conv"),
        (encoder["fpn"]["output5"]["kernel"], "encoder_q.1.fpn_convs.3.conv"),
        (encoder["head"]["conv1"]["kernel"], "encoder_q.2.cls_convs.0.conv"),
        (state.target_params["head"]["conv4"]["kernel"], "encoder_k.2.cls_convs.3.conv"),
    )
    for ours, name in pairs:
        np.testing.assert_array_equal(ours, arrays[f"{name}.weight"].transpose(2, 3, 1, 0))
    linear = state.params["predictor"]["level2"]["linear1"]["kernel"]
    np.testing.assert_array_equal(linear, arrays["head.predictor.2.mlp.0.weight"].T)
    last = state.batch_stats["encoder"]["projector"]["norm2"]["var"]
    np.testing.assert_array_equal(last, arrays["encoder_q.2.mlp.4.running_var"])
    shortcut = state.target_batch_stats["backbone"]["res2"]["block0"]["shortcut"]["norm"]["mean"]
    name = "encoder_k.0.layer1.0.downsample.1.running_mean"
    np.testing.assert_array_equal(shortcut, arrays[name])
    assert meta["config"]["model"]["backbone"] == "resnet50"


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_authors_to_jax_to_authors_is_exact(tmp_path, suffix, capsys):
    if suffix == ".pth":
        need_torch()
    arrays = make_arrays(R18)
    source = write_npz(tmp_path / "in.npz", arrays, iter=STEP)
    main([str(source), "--from", "mcl-official", "--out", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert "starting from zero momentum" in text and "--config.model.backbone=resnet18" in text
    out = tmp_path / f"out{suffix}"
    main([str(tmp_path / "run"), "--to", "mcl-official", "--out", str(out)])
    content = authors_files.read(out)
    assert content.step == STEP and set(content.arrays) == set(arrays)
    for name, x in arrays.items():
        np.testing.assert_array_equal(content.arrays[name], x)
    reports = ["out.report.json", "out.report.txt"]
    names = sorted(["in.npz", "run", out.name, *reports])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    report = json.loads((tmp_path / reports[0]).read_text())
    assert report["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert {row["name"] for row in report["tensors"]} == set(arrays)
    assert max(report["self_check"].values()) < 1e-5 and "head" in report["self_check"]


def test_jax_to_authors_to_jax_is_exact(tmp_path):
    state, meta, _ = load(write_npz(tmp_path / "a.npz", make_arrays(R18), iter=STEP))
    # Through a checkpoint on disk, as `convert` reads it.
    checkpoint.write(tmp_path / "run", state, meta)
    read, read_meta = checkpoint.read(tmp_path / "run")
    authors.export(Snapshot(read, read_meta), tmp_path / "b.npz")
    again, _, _ = load(tmp_path / "b.npz")
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    with np.load(tmp_path / "b.npz") as file:
        assert int(file["iter"]) == STEP


def test_imported_checkpoint_is_what_training_resumes_from(tmp_path):
    config = base.get_config()
    config.model.update(vars(R18))
    config.data.batch_size = 512  # 64 images on each of the 8 devices: whole canvases
    config.data.image_size = 64
    path = write_npz(tmp_path / "a.npz", make_arrays(R18), iter=STEP)
    state, meta, _ = authors.load(path, config, adopt=False)
    checkpoint.write(tmp_path / "run", state, meta)
    run = program.build(config, sharding.make_mesh(), images=5120)
    with Checkpointer(tmp_path / "run", keep=1) as checkpointer:
        restored, restored_meta = checkpointer.restore(program.abstract_state(run))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert int(restored.step) == STEP and restored_meta["config"] == program.plain_config(config)
    counts = [
        x for path, x in jax.tree_util.tree_leaves_with_path(restored.opt_state) if x.ndim == 0
    ]
    assert [int(count) for count in counts] == [STEP]  # the learning rate goes on where it was


@pytest.mark.parametrize("prefixes", [("encoder_q", "encoder_k", "head"), ("encoder_q", "head")])
def test_momentum_arrives_with_the_sign_of_optax(tmp_path, prefixes):
    arrays = make_arrays(R18)
    saved, buffers = optimizer_dict(arrays, prefixes)
    aliases = {
        n.replace("encoder_q.0.", "backbone."): x
        for n, x in arrays.items()
        if n.startswith("encoder_q.0.")
    }
    tensors = as_tensors(arrays | aliases, "module.")
    content = {"state_dict": tensors, "meta": {"iter": STEP, "epoch": 2}, "optimizer": saved}
    torch.save(content, tmp_path / "a.pth")
    state, _, notes = load(tmp_path / "a.pth")
    assert int(state.step) == STEP and any("imported the momentum" in note for note in notes)
    trace = strict.flatten({"params": optax.tree_utils.tree_get(state.opt_state, "trace")})
    names = {t.source: t.authors for t in authors.tensors(R18, LEVELS)}
    assert {names[source] for source in trace} == set(buffers)
    for source, x in trace.items():
        np.testing.assert_array_equal(authors.table.to_torch(x), -buffers[names[source]])


def test_optimizer_adds_its_trace_where_torch_subtracts_its_buffer():
    """Why the imported momentum changes its sign: torch's w <- w - (0.9 buffer + lr g), g = 0."""
    settings = fill(optimizer.OptimizerSettings, base.get_config().optimizer)
    params = {"bias": jnp.zeros(3)}
    tx = optimizer.create(settings, params, lambda step: jnp.float32(1.0))
    trace = {"bias": jnp.asarray([1.0, -2.0, 3.0])}
    state = optax.tree_utils.tree_set(tx.init(params), trace=trace)
    updates, _ = tx.update({"bias": jnp.zeros(3)}, state, params)
    np.testing.assert_array_equal(updates["bias"], np.float32(0.9) * trace["bias"])


def test_bare_state_dict_with_wrapper_prefix_and_counters(tmp_path):
    arrays = make_arrays(R18)
    tensors = as_tensors(arrays, "module.")
    tensors["module.encoder_q.0.bn1.num_batches_tracked"] = torch.tensor(9)
    torch.save(tensors, tmp_path / "a.pth")
    state, _, notes = load(tmp_path / "a.pth")
    assert any("starting at step 0" in note for note in notes)
    stem = state.params["encoder"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem, arrays["encoder_q.0.conv1.weight"].transpose(2, 3, 1, 0))


def test_written_pth_has_every_name_of_the_authors_module(tmp_path):
    need_torch()
    arrays = make_arrays(R18)
    authors_files.write(tmp_path / "a.pth", arrays, STEP)
    names = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    aliases = {n.replace("encoder_q.0.", "backbone.") for n in arrays if "q.0." in n}
    assert set(names) == set(arrays) | aliases


@pytest.mark.parametrize("a", [R18, NARROW_R50])
def test_networks_are_inferred_from_the_shapes(a):
    shapes = {name: x.shape for name, x in make_arrays(a).items()}
    assert architectures.infer(shapes) == (a, LEVELS)


def test_given_config_is_used(tmp_path):
    path = write_npz(tmp_path / "a.npz", make_arrays(R18))
    config_path = config_file(tmp_path, vars(R18), base_lr=0.25)
    out = tmp_path / "run"
    main([str(path), "--from", "mcl-official", "--out", str(out), "--config", str(config_path)])
    assert checkpoint.read(out)[1]["config"]["optimizer"]["base_lr"] == 0.25
