"""torchvision's detectors and MMDetection: names, numbers, folding, averaging and division.

Shapes: here NHWC and HWIO; exported arrays OIHW.
"""

import ast
from dataclasses import replace

import numpy as np
import pytest
from convert_states import (
    DATA,
    NARROW_R34,
    NARROW_R50,
    R18,
    R50,
    arrays_of,
    export_to,
    full_meta_of,
    job_of,
    layout_of,
    meta_of,
    random_state,
)
from swin_networks import TINY
from torch_or_skip import module_on_torch, torch

from mcl_jax.convert import transform
from mcl_jax.convert.checks import forward, selfcheck
from mcl_jax.convert.files import strict
from mcl_jax.convert.names import swin, table
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.layouts import roots
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError
from mcl_jax.models import resnet
from mcl_jax.models import swin as swin_sizes
from mcl_jax.models.backbone import stage_channels
from mcl_jax.models.norm import BatchNorm

# What a detector has that nothing pre-trains.
SCRATCH = ("rpn.", "roi_heads.box_head.5.", "roi_heads.box_predictor.", "roi_heads.mask_")


def tiny_swin(seed=0, a=TINY):
    """A state with a small Swin, FPN and head, activations of order one."""
    r = np.random.RandomState(seed)
    flat = {row.source: (0.3 * r.randn(*row.shape)).astype(np.float32) for row in swin.rows(a)}
    for name in flat:
        if name.endswith("/scale"):
            flat[name] = flat[name] + 1
    rest = random_state(a, seed)
    return strict.unflatten(flat | strict.flatten(rest))


def keys_of(name):
    """torchvision's name -> shape, of the floating-point arrays of a detector."""
    rows = [x.split("\t") for x in (DATA / f"keys_torchvision_{name}.txt").read_text().splitlines()]
    return {name: ast.literal_eval(shape) for name, shape, _ in rows}


def shapes(model):
    return {name: x.shape for name, x in model.items()}


def test_whole_files_are_torchvisions_mask_rcnn_v2_but_for_its_new_layers():
    """Its counters of batches included."""
    model = arrays_of("torchvision", random_state(R50, 0), meta_of(R50), "all")
    expected = keys_of("maskrcnn_resnet50_fpn_v2")
    assert shapes(model) == {k: v for k, v in expected.items() if not k.startswith(SCRATCH)}


def test_files_of_a_resnet18_are_torchvisions_and_the_loader_names_the_rest(tmp_path):
    """torchvision has no constructor for it; the loader puts its parts together."""
    a = replace(NARROW_R50, backbone="resnet18", width=64, fpn_channels=256)
    job = job_of("torchvision", random_state(a, 0), meta_of(a), "all")
    model = TARGETS["torchvision"].layout(job).to_file(job.state, "the checkpoint")
    expected = keys_of("maskrcnn_resnet18")
    (text,) = TARGETS["torchvision"].files(job).values()
    loader = ast.parse(text)
    assigned = [x for x in loader.body if isinstance(x, ast.Assign)]
    values = {ast.unparse(x.targets[0]): x.value for x in assigned}
    scratch = ast.literal_eval(values["SCRATCH"])
    assert ast.literal_eval(values["CHANNELS"]) == 256
    assert shapes(model) == {k: v for k, v in expected.items() if not k.startswith(scratch)}
    (note,) = TARGETS["torchvision"].notes(job)
    assert note.endswith("--backbone resnet18 --fpn_channels 256 --head_convs 4")
    backbone = job_of("torchvision", job.state, meta_of(a), "backbone,fpn")
    (text,) = TARGETS["torchvision"].files(backbone).values()
    assert "SCRATCH = ('rpn.', 'roi_heads.')" in text
    narrow = job_of("torchvision", random_state(R18, 0), meta_of(R18), "all")
    assert not TARGETS["torchvision"].files(narrow)
    assert "builds resnet18 with width 64 only" in TARGETS["torchvision"].notes(narrow)[0]


def test_folded_files_are_torchvisions_mask_rcnn_without_norms_in_the_fpn():
    job = job_of("torchvision", random_state(R50, 0), meta_of(R50), "backbone,fpn", folded=True)
    state = transform.fold(job.state, job.parts, forward.EPSILON)
    model = TARGETS["torchvision"].layout(job).to_file(state, "the checkpoint")
    expected = keys_of("maskrcnn_resnet50_fpn")
    assert shapes(model) == {
        k: v for k, v in expected.items() if not k.startswith(("rpn.", "roi_heads."))
    }


def loaded(target, a, model, norm=True):
    """The library's network as torch restates it, with these weights, every name accounted for."""
    networks = module_on_torch("torch_detectors")
    if a is TINY:
        size = swin_sizes.size_of(a.backbone)
        sizes = (size.depths, size.window, size.head_channels, size.mlp_ratio)
        backbone = networks.Swin(a.width, *sizes)
    else:
        backbone = networks.ResNet(a.width, *resnet.blocks_of(a.backbone))
    network = networks.Detector(
        target, backbone, stage_channels(a), a.fpn_channels, a.head_convs, norm=norm
    )
    network.load_state_dict({name: torch.tensor(x) for name, x in model.items()}, strict=True)
    return network.eval()


@pytest.mark.parametrize(
    "target, a",
    [
        ("torchvision", R18),
        ("torchvision", NARROW_R34),
        ("torchvision", NARROW_R50),
        ("mmdet", NARROW_R50),
        ("mmdet", TINY),
    ],
)
def test_written_files_compute_the_same_in_torch(tmp_path, target, a):
    state = tiny_swin() if a is TINY else random_state(a, 1)
    files = export_to(target, state, meta_of(a), tmp_path / "out", "all")
    path = next(path for path in files if path.suffix == ".pth")
    content = torch.load(path, weights_only=True)
    if target == "mmdet":
        assert content["meta"]["method"] == "mcl"
        content = content["state_dict"]
    network = loaded(target, a, {name: x.numpy() for name, x in content.items()})
    images, rois = (torch.tensor(x, dtype=torch.float32) for x in forward.inputs(a))
    with torch.no_grad():
        theirs = network(images, rois)
    ours = selfcheck.reference(state, a, parts=PARTS, epsilon=forward.EPSILON)
    assert (
        set(theirs)
        == set(ours)
        == {"head", *(f"{k}{i}" for k in ("res", "P") for i in range(2, 6))}
    )
    for name, x in ours.items():
        np.testing.assert_allclose(theirs[name], x, atol=1e-5 * np.abs(x).max())


def test_a_folded_fpn_computes_the_same_in_torch(tmp_path):
    state = random_state(NARROW_R50, 2)
    out = tmp_path / "out"
    meta = meta_of(NARROW_R50)
    export_to("torchvision", state, meta, out, "backbone,fpn", folded=True)
    model = torch.load(out / "mcl_maskrcnn_resnet50_fpn.pth", weights_only=True)
    a = NARROW_R50
    networks = module_on_torch("torch_detectors")
    backbone = networks.ResNet(a.width)
    network = networks.Detector(
        "torchvision", backbone, stage_channels(a), a.fpn_channels, 0, norm=False
    )
    network.load_state_dict(model, strict=True)
    images, rois = (torch.tensor(x, dtype=torch.float32) for x in forward.inputs(a))
    with torch.no_grad():
        theirs = network.eval()(images, rois)
    ours = selfcheck.reference(state, a, parts=PARTS[:2], epsilon=forward.EPSILON)
    for name, x in ours.items():
        np.testing.assert_allclose(theirs[name], x, atol=1e-5 * np.abs(x).max())
    assert "cannot be undone" in (out / "report.txt").read_text()
    with pytest.raises(UserError, match="--fold-norms goes with --parts backbone,fpn"):
        export_to("torchvision", state, meta, tmp_path / "no", "all", folded=True)


def test_another_epsilon_than_the_libraries_is_noticed(tmp_path):
    meta = meta_of(R18)
    meta["config"]["numerics"] = {"bn_epsilon": 1e-2}
    with pytest.raises(UserError, match="computes another res2: it differs by"):
        export_to("detectron2", random_state(R18, 0), meta, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("divisor", [1.5, 2.0])
def test_divided_weights_give_the_same_features(divisor):
    """Paper Table 10d. Of a convolution with its norm, by the batch's statistics and by running ones."""
    state = random_state(R18, 3)
    divided = transform.divide(state, meta_of(R18)["config"], divisor)
    before, after = (
        strict.flatten({k: s[k] for k in ("params", "batch_stats")}) for s in (state, divided)
    )
    for name, x in before.items():
        leaf, detector = name.rsplit("/", 1)[1], name.startswith(roots(*PARTS))
        power = {"kernel": 1, "mean": 1, "var": 2}.get(leaf, 0) if detector else 0
        np.testing.assert_allclose(after[name], x / divisor**power, rtol=1e-6)
    stem = "encoder/backbone/stem"
    x = np.random.RandomState(0).randn(4, 16, 16, 3).astype(np.float32)
    norm = BatchNorm(momentum=0.9, epsilon=forward.EPSILON)
    features = {}
    for train in (True, False):
        for which, flat in (("before", before), ("after", after)):
            kernel = table.to_torch(flat[f"params/{stem}/kernel"])
            y = forward.convolve(x.transpose(0, 3, 1, 2), kernel, 2).transpose(0, 2, 3, 1)
            variables = {
                "params": {k: flat[f"params/{stem}/norm/{k}"] for k in ("scale", "bias")},
                "batch_stats": {k: flat[f"batch_stats/{stem}/norm/{k}"] for k in ("mean", "var")},
            }
            out = norm.apply(variables, y, (4,), train=train, mutable=["batch_stats"])[0]
            features[train, which] = np.asarray(out)
        largest = np.abs(features[train, "before"]).max()
        # epsilon is not divided: 1e-5 beside variances of order one
        np.testing.assert_allclose(
            features[train, "after"], features[train, "before"], atol=5e-5 * largest
        )


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match="swin_tiny has none"):
        transform.divide(tiny_swin(), meta_of(TINY)["config"], 2.0)
    for divisor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be above 0"):
            transform.divide(random_state(R18, 0), meta_of(R18)["config"], divisor)


def test_the_average_is_that_of_every_array():
    states = [random_state(R18, seed) for seed in range(3)]
    mean = strict.flatten(transform.average(states))
    flat = [strict.flatten(state) for state in states]
    assert set(mean) == set(flat[0])
    for name, x in mean.items():
        expected = (flat[0][name].astype(np.float64) + flat[1][name] + flat[2][name]) / 3
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-8)
        assert x.dtype == np.float32
    with pytest.raises(UserError, match="hold different networks"):
        transform.average([states[0], random_state(NARROW_R50, 0)])


ALL = [(target, R18) for target in TARGETS] + [("mmdet", TINY), ("timm", TINY)]


@pytest.mark.parametrize("target, a", ALL)
def test_every_entry_is_missed_by_name(target, a):
    """Dropped or renamed in the checkpoint; of the file: transposed, or another's values."""
    state = tiny_swin() if a is TINY else random_state(a, 4)
    layout = layout_of(target, state, (full_meta_of if target == "safetensors" else meta_of)(a))
    flat = strict.flatten(state)
    model = layout.to_file(state, "the checkpoint")
    for entry in layout.entries:
        rest = {path: x for path, x in flat.items() if path != entry.source}
        with pytest.raises(UserError, match=f"1 problem: missing {entry.source}$"):
            layout.to_file(strict.unflatten(rest), "the checkpoint")
        renamed = strict.unflatten(rest | {entry.source + "2": flat[entry.source]})
        with pytest.raises(UserError, match=f"missing {entry.source}; unexpected {entry.source}2"):
            layout.to_file(renamed, "the checkpoint")
    for name in layout.named:
        x = model[name]
        inputs_and_outputs = (2, 3) if target == "safetensors" and x.ndim == 4 else (0, 1)
        wrong = x.swapaxes(*inputs_and_outputs) if x.ndim > 1 else x[::-1]
        message = "the written file is wrong" if wrong.shape == x.shape else f"{name} has shape"
        with pytest.raises(UserError, match=message) as caught:
            layout.demand_same(model | {name: wrong}, state)
        assert name in str(caught.value)


def test_a_file_that_computes_something_else_is_refused():
    """Two arrays of one shape under each other's names: what only the numbers can tell."""
    state, meta = random_state(R18, 5), meta_of(R18)
    layout = layout_of("detectron2", state, meta)
    model = layout.to_file(state, "the checkpoint")
    first, second = "res3.0.conv2.weight", "res3.1.conv1.weight"
    swapped = model | {first: model[second], second: model[first]}
    check = (layout, state, R18, PARTS, meta["config"])
    assert max(selfcheck.check(model, *check).values()) < 1e-5
    with pytest.raises(UserError, match="computes another res3"):
        selfcheck.check(swapped, *check)
