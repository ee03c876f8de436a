"""Export to torchvision, and what the other targets do with networks they cannot take whole.

Shapes: here HWIO and [in, out]; exported arrays OIHW and [out, in].
"""

import json
import pickle
import runpy
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_states import (
    NUMERICS,
    R18,
    R50,
    arrays_of,
    export_to,
    layout_of,
    meta_of,
    random_state,
)
from swin_networks import SWIN_T, TINY, keys_of, rule_made, rule_made_state
from torch_or_skip import module_on_torch, need_torch, torch

from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.command import main
from mcl_jax.convert.files import strict
from mcl_jax.convert.names import classifiers
from mcl_jax.convert.names.classifiers import TIMM, TORCHVISION
from mcl_jax.convert.names.layouts import networks
from mcl_jax.convert.targets import authors
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import make_backbone
from mcl_jax.models.layers import Context
from mcl_jax.runtime import checkpoint
from mcl_jax.state import TrainState

OUTPUT_NORMS = ("norm2", "norm3", "norm4")


def run_of(a, method, pooling="montage"):
    """What `checkpoint.read` gives as meta for a run of another method."""
    meta = meta_of(a)
    meta["config"] |= {"method": method, "supervised": {"pooling": pooling}}
    return meta


def random_tiny(seed=0):
    r = np.random.RandomState(seed)
    flat = {}
    for entry in classifiers.layout(TINY, TORCHVISION, classes=None).entries:
        scale = 0.3 if len(entry.shape) > 1 else 1.0
        flat[entry.source] = (scale * r.randn(*entry.shape)).astype(np.float32)
    return strict.unflatten(flat)


def exported(out, a):
    with (out / "report.json").open() as file:
        content = json.load(file)
    return torch.load(out / f"mcl_{a.backbone}.pth", weights_only=True), content


def without(state, *parts):
    """The state of a method whose encoder does not have these parts."""
    flat = strict.flatten(state)
    fields = ("params", "batch_stats")
    gone = tuple(f"{field}/encoder/{part}/" for field in fields for part in parts)
    return strict.unflatten({name: x for name, x in flat.items() if not name.startswith(gone)})


@pytest.mark.parametrize("a", [TINY, SWIN_T])
def test_table_lists_exactly_what_the_module_creates(a):
    images = jnp.zeros((1, 32, 32, 3))
    init = lambda key: make_backbone(a, NUMERICS).init(key, images, Context((1,), train=False))  # noqa: E731
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    shapes = {}
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        shapes["/".join(("params/encoder/backbone", *(key.key for key in path)))] = x.shape
    assert {
        e.source: e.shape for e in classifiers.layout(a, TORCHVISION, classes=None).entries
    } == shapes


@pytest.mark.parametrize("name, a", [("swin_t", SWIN_T), ("resnet50", R50)])
def test_export_returns_torchvisions_own_state_dict(tmp_path, name, a):
    state, arrays = rule_made_state(name, a)
    export_to("torchvision", state, run_of(a, "byol"), tmp_path / "out")
    model, content = exported(tmp_path / "out", a)
    keys = keys_of(name)
    head = [
        key for key in keys if key.startswith(f"{classifiers.classifier_name(a, TORCHVISION)}.")
    ]
    assert list(model) == [key for key in keys if key not in head]
    for key, tensor in model.items():
        shape, dtype = keys[key]
        assert tuple(tensor.shape) == shape and str(tensor.dtype) == f"torch.{dtype}"
        if key in arrays:
            np.testing.assert_array_equal(tensor.numpy(), arrays[key])
    assert set(arrays) == {key for key in model if keys[key][1] == "float32"}
    assert content["models"][f"torchvision.models.{name}()"]["from_scratch"].startswith(head[0][:2])
    assert not content["notes"]


@pytest.mark.parametrize("name, a", [("swin_t", SWIN_T), ("resnet50", R50)])
def test_timm_gets_the_same_arrays_under_its_own_names(tmp_path, name, a):
    """timm 1.0's names and shapes; it keeps no index buffers in a state_dict."""
    state, _ = rule_made_state(name, a)
    meta = run_of(a, "byol")
    export_to("timm", state, meta, tmp_path / "out")
    model, content = exported(tmp_path / "out", a)
    keys = keys_of(name, "timm")
    head = {f"{classifiers.classifier_name(a, TIMM)}.{leaf}" for leaf in ("weight", "bias")}
    shapes = {
        key: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in model.items()
    }
    assert shapes == {key: kind for key, kind in keys.items() if key not in head}
    assert head <= set(keys)
    torchvision_arrays = arrays_of("torchvision", state, meta)
    sources = layout_of("torchvision", state, meta).sources
    by_source = {
        source: torchvision_arrays[key] for key, source in sources.items() if source != "computed"
    }
    for row in content["tensors"]:
        if row["source"] != "computed":
            np.testing.assert_array_equal(model[row["name"]], by_source.pop(row["source"]))
    assert not by_source and content["target"] == "timm"
    known = {"swin_t": "swin_tiny_patch4_window7_224"}.get(name, name)
    assert f"timm.create_model('{known}')" in content["models"]


def test_index_buffer_counts_offsets_row_by_row():
    """For the bias table's layout: row (dy + w - 1) * (2w - 1) + dx + w - 1 of query minus key."""
    model = arrays_of("torchvision", random_tiny(), meta_of(TINY))
    sources = layout_of("torchvision", random_tiny(), meta_of(TINY)).sources
    name = "features.1.0.attn.relative_position_index"
    tokens = [(y, x) for y in range(3) for x in range(3)]
    expected = [(a - c + 2) * 5 + b - d + 2 for a, b in tokens for c, d in tokens]
    np.testing.assert_array_equal(model[name], expected)
    assert sources[name] == "computed"


def test_report_accounts_for_every_array(tmp_path):
    state = random_tiny()
    state["params"]["encoder"]["fpn"] = {"lateral2": {"kernel": np.ones((1, 1, 8, 8), np.float32)}}
    state["params"]["predictor"] = {"linear1": {"bias": np.ones(3, np.float32)}}
    state["target_params"] = state["params"]["encoder"]
    export_to("torchvision", state, meta_of(TINY), tmp_path / "out")
    model, content = exported(tmp_path / "out", TINY)
    arrays = networks(state)
    learned = [row for row in content["tensors"] if row["source"] != "computed"]
    assert [row["name"] for row in content["tensors"]] == list(model)
    assert len(learned) + sum(part.get("tensors", 0) for part in content["left_out"]) == len(arrays)
    left = {part["source"]: part for part in content["left_out"]}
    assert left["params/encoder/backbone/"]["tensors"] == 2 * len(OUTPUT_NORMS)
    assert "output norms" in left["params/encoder/backbone/"]["reason"]
    assert set(left) == {
        "params/encoder/backbone/",
        "params/encoder/fpn/",
        "params/predictor/",
        "target_params/",
        "opt_state, memory",
    }
    assert "embedding dimension 96 in torchvision, this one 8" in content["notes"][0]
    assert "embedding dimension" in (tmp_path / "out" / "report.txt").read_text()


def test_classifier_of_whole_images_is_torchvisions(tmp_path):
    state = random_tiny()
    kernel, bias = rule_made("k", (64, 5)), rule_made("b", (5,))
    state["params"]["classifier"] = {"kernel": kernel, "bias": bias}
    meta = run_of(TINY, "supervised", "image")
    export_to("torchvision", state, meta, tmp_path / "out")
    model, content = exported(tmp_path / "out", TINY)
    assert list(model)[-2:] == ["head.weight", "head.bias"]
    np.testing.assert_array_equal(model["head.weight"].numpy(), kernel.T)
    np.testing.assert_array_equal(model["head.bias"].numpy(), bias)
    assert "num_classes=5" in content["notes"][1]
    # A classifier of RoI features is not torchvision's.
    model = arrays_of("torchvision", state, run_of(TINY, "supervised"))
    assert not any(name.startswith("head.") for name in model)
    del state["params"]["classifier"]["bias"]
    with pytest.raises(UserError, match="missing params/classifier/bias"):
        arrays_of("torchvision", state, meta)


@pytest.mark.parametrize("damage", ["drop", "transpose", "nan", "extra"])
def test_a_damaged_backbone_is_named_and_nothing_is_written(tmp_path, damage):
    flat = strict.flatten(random_tiny())
    leaf = "params/encoder/backbone/res3/block1/attention/relative_position_bias_table"
    if damage == "extra":
        leaf = "params/encoder/backbone/res3/block2/norm1/scale"
        flat[leaf] = np.ones(16, np.float32)
    else:
        x = flat.pop(leaf)
        flat |= {"transpose": {leaf: x.T}, "nan": {leaf: x * np.nan}}.get(damage, {})
    with pytest.raises(UserError, match=leaf):
        export_to("torchvision", strict.unflatten(flat), meta_of(TINY), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_targets_say_where_a_swin_goes(tmp_path, capsys):
    trees = jax.tree.map(jnp.asarray, random_tiny())
    empty = {"batch_stats": {}, "target_params": {}, "target_batch_stats": {}}
    state = TrainState(
        step=jnp.int32(1), opt_state={"n": jnp.int32(1)}, memory={}, **trees, **empty
    )
    checkpoint.write(tmp_path / "run", state, {"config": meta_of(TINY)["config"]})
    out = tmp_path / "out"
    for target, path in (("detectron2", out), ("mcl-official", tmp_path / "a.pth")):
        with pytest.raises(SystemExit) as caught:
            main([str(tmp_path / "run"), "--to", target, "--out", str(path)])
        err = capsys.readouterr().err
        assert caught.value.code == 2 and len(err.splitlines()) == 1
        assert "swin_tiny" in err and "--to torchvision" in err and not path.exists()
    need_torch()
    main([str(tmp_path / "run"), "--to", "torchvision", "--out", str(out)])
    assert str(out / "mcl_swin_tiny.pth") in capsys.readouterr().out
    assert exported(out, TINY)[1]["step"] == 1


@pytest.mark.parametrize("method, pooling", [("byol", "montage"), ("supervised", "image")])
def test_detectron2_takes_the_backbone_of_methods_without_fpn(tmp_path, method, pooling):
    state = random_state(R18, 1)
    bare = without(state, "fpn", "head")
    meta = run_of(R18, method, pooling)
    export_to("detectron2", bare, meta, tmp_path / "out")
    with (tmp_path / "out" / "mcl_resnet18.pkl").open("rb") as file:
        model = pickle.load(file)["model"]
    whole = arrays_of("detectron2", state, meta_of(R18))
    assert list(model) == [name for name in whole if name.startswith(("stem.", "res"))]
    assert all(np.array_equal(x, whole[name]) for name, x in model.items())
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert f"{method} with neck fpn pre-trains the backbone alone" in content["notes"][-1]
    fpn = content["models"]["RetinaNet FPN"]
    assert fpn["loads"] == "backbone" and fpn["from_scratch"].startswith("FPN")
    # The same checkpoint, were it MCL's, would be incomplete.
    with pytest.raises(UserError, match="missing params/encoder/fpn"):
        export_to("detectron2", bare, run_of(R18, "mcl"), tmp_path / "mcl")
    with pytest.raises(UserError, match=f"this checkpoint is {method}"):
        authors.export(Snapshot(bare, meta), tmp_path / "a.npz")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_written_loader_builds_the_model_and_notices_what_is_missing(
    tmp_path, library, monkeypatch
):
    """Run with a ResNet-50 of the library's names in the library's place, which is not installed."""

    class ResNet50(module_on_torch("torch_detectors").ResNet):
        def __init__(self):
            super().__init__(64)
            self.fc = torch.nn.Linear(2048, 1000)

    built = types.SimpleNamespace(resnet50=ResNet50)
    fake = types.SimpleNamespace(models=built, create_model=lambda name: getattr(built, name)())
    monkeypatch.setitem(sys.modules, library, fake)
    state = random_state(R50, 6)
    export_to(library, state, run_of(R50, "byol"), tmp_path / "out")
    loader = tmp_path / "out" / f"load_{library}.py"
    model = runpy.run_path(str(loader))["model"]
    kernel = state["params"]["encoder"]["backbone"]["stem"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(model.conv1.weight.detach().numpy(), kernel)
    path = tmp_path / "out" / "mcl_resnet50.pth"
    weights = torch.load(path, weights_only=True)
    del weights["layer2.0.conv1.weight"]
    torch.save(weights, path)
    with pytest.raises(AssertionError, match="layer2.0.conv1.weight"):
        runpy.run_path(str(loader))
