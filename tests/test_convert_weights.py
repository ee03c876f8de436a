"""Weights as other projects save them: each file is read as the same arrays, whatever its name.

Shapes: torchvision's names have OIHW; what is read has the layout of the state.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from convert_states import arrays_of, full_meta_of, random_state
from test_convert_detectors import tiny_swin
from test_convert_imports import TINY
from test_convert_refusals import fails
from torch_or_skip import module_on_torch, torch
from weights_of_projects import PROJECTS, behind

from mcl_jax.configs import base
from mcl_jax.convert import imports
from mcl_jax.convert.checks import detectron2_check
from mcl_jax.convert.files import formats, weights
from mcl_jax.convert.names.layouts import networks
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture

save_file = module_on_torch("safetensors.torch").save_file

SMALL = Architecture("resnet18", 4, 8, 2, 16, 8, 16, "fpn", 0.0)
BACKBONE = ("params/encoder/backbone/", "batch_stats/encoder/backbone/")


def dotted(tree, prefix=""):
    """For formats without containers: the path to each array as its name."""
    found = {}
    for key, x in tree.items():
        if isinstance(x, dict):
            found |= dotted(x, f"{prefix}{key}.")
        elif isinstance(x, torch.Tensor):
            found[prefix + key] = x.clone()  # safetensors refuses tensors that share memory
    return found


def as_arrays(tree):
    """The same containers with numpy's arrays."""
    if isinstance(tree, dict):
        return {key: as_arrays(x) for key, x in tree.items()}
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


def save_npz(content, path):
    with path.open("wb") as file:
        np.savez(file, **{name: x.numpy() for name, x in dotted(content).items()})


SAVE = dict.fromkeys((".pth", ".pth.tar", ".pt", ".bin", ".ckpt"), torch.save) | {
    ".pkl": lambda content, path: path.write_bytes(pickle.dumps(as_arrays(content))),
    ".safetensors": lambda content, path: save_file(dotted(content), path),
    ".npz": save_npz,
}


@pytest.fixture(scope="module")
def state():
    return random_state(SMALL, 0)


@pytest.fixture(scope="module")
def pair(state):
    """Two networks under torchvision's names, a classifier's last layer included."""
    both = []
    for x in (state, random_state(SMALL, 1)):
        arrays = arrays_of("torchvision", x, full_meta_of(SMALL))
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        both.append(tensors | {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)})
    return both


@pytest.fixture(scope="module")
def backbone(state):
    return {path: x for path, x in networks(state).items() if path.startswith(BACKBONE)}


def read(path, origin, network=None):
    return imports.read(path, origin, base.get_config(), adopt=True, network=network)


def demand_equal(arrays, expected):
    assert set(arrays) == set(expected)
    for path, x in expected.items():
        np.testing.assert_array_equal(arrays[path], x)


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("name", PROJECTS)
def test_every_style_in_every_format_is_the_same_arrays(tmp_path, pair, backbone, name, suffix):
    project, path = PROJECTS[name], tmp_path / f"file{suffix}"
    SAVE[suffix](project.content(*pair), path)
    if project.networks and suffix == ".pth":
        with pytest.raises(UserError) as caught:
            read(path, project.origin)
        listed = f"holds several networks: {', '.join(project.networks)}; choose one with --network"
        assert listed in str(caught.value)
    found = read(path, project.origin, project.network)
    demand_equal(found.arrays, backbone)
    assert found.config.model.width == 4 and found.config.model.backbone == "resnet18"
    said = [note for note in found.notes if note.startswith("names are taken from behind")]
    if suffix not in (".safetensors", ".npz"):  # which have another order, so another first alias
        expected = f"names are taken from behind {project.prefix!r}"
        assert said == ([expected] if project.prefix else [])


def test_the_format_is_what_the_content_says(tmp_path, pair, backbone):
    """DetCo's files of torch are named .pkl; others rename theirs too."""
    for content in SAVE:
        for name in (".pkl", ".pth", ".npz", ".weights", ""):
            path = tmp_path / f"file{name}"
            SAVE[content](pair[0], path)
            demand_equal(read(path, "torchvision").arrays, backbone)


def test_files_from_before_torch_1_6_are_read(tmp_path, pair, backbone):
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": pair[0]}, path, _use_new_zipfile_serialization=False)
    demand_equal(read(path, "torchvision").arrays, backbone)


def test_the_other_network_is_chosen_by_any_of_its_names(tmp_path, pair):
    q, k = pair
    path = tmp_path / "a.pth"
    torch.save(PROJECTS["densecl"].content(q, k), path)
    for name in ("encoder_k", "encoder_k.0", "state_dict.encoder_k.0."):
        found = weights.read(path, "torchvision", name)
        np.testing.assert_array_equal(found.arrays["conv1.weight"], k["conv1.weight"])
        assert "other networks of the file, not read: encoder_q.0" in found.notes
    with pytest.raises(UserError, match="--network 0 is not one alone of a.pth's networks"):
        weights.read(path, "torchvision", "0")  # a part of both names
    with pytest.raises(UserError, match="--network x is none of a.pth's networks: encoder_q.0"):
        weights.read(path, "torchvision", "x")


def test_networks_that_only_a_wrapper_tells_apart(tmp_path, pair):
    path = tmp_path / "a.pth"
    torch.save(pair[0] | behind("module.", pair[1]), path)
    with pytest.raises(UserError, match="holds several networks: unprefixed, module; choose"):
        weights.read(path, "torchvision")
    for name, x in (("unprefixed", pair[0]), ("module", pair[1])):
        found = weights.read(path, "torchvision", name).arrays
        np.testing.assert_array_equal(found["conv1.weight"], x["conv1.weight"])


@pytest.mark.parametrize(
    "suffix, dtype",
    [(suffix, torch.float16) for suffix in (".pth", ".safetensors", ".pkl", ".npz")]
    + [(suffix, torch.bfloat16) for suffix in (".pth", ".safetensors")],  # numpy has none
)
def test_half_precision_is_widened(tmp_path, pair, suffix, dtype):
    half = {name: x.to(dtype) if x.is_floating_point() else x for name, x in pair[0].items()}
    SAVE[suffix](half, tmp_path / f"a{suffix}")
    found = read(tmp_path / f"a{suffix}", "torchvision").arrays
    name = "params/encoder/backbone/stem/kernel"
    expected = half["conv1.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found[name], expected)
    assert found[name].dtype == np.float32


def test_swins_of_its_authors_and_of_mmpretrain(tmp_path):
    """Both lack the stages' norms; the first code's patch mergings end a stage."""
    state = tiny_swin(0, TINY)
    ours = networks(state)
    for origin, prefix, left_out in (
        ("timm", "model.encoder.", ()),
        ("mmdet", "state_dict.", ("backbone.norm0", "backbone.norm1", "backbone.norm2")),
    ):
        arrays = arrays_of(origin, state, full_meta_of(TINY), "backbone")
        if origin == "timm":
            for i in (1, 2, 3):
                names = [n for n in arrays if n.startswith(f"layers.{i}.downsample.")]
                arrays |= {n.replace(f"s.{i}.", f"s.{i - 1}."): arrays.pop(n) for n in names}
        kept = {n: torch.tensor(x) for n, x in arrays.items() if not n.startswith(left_out or "-")}
        first, _, rest = prefix.partition(".")
        torch.save({first: behind(rest, kept)}, tmp_path / "a.pth")
        found = read(tmp_path / "a.pth", origin)
        assert f"names are taken from behind {prefix!r}" in found.notes
        stages = ("norm2/", "norm3/", "norm4/")
        backbone = {
            path: x
            for path, x in ours.items()
            if path.startswith(BACKBONE) and not path.split("backbone/")[1].startswith(stages)
        }
        demand_equal(found.arrays, backbone)


def test_what_detectron2s_trainer_writes(tmp_path, state):
    """model_final.pth; a mean teacher's two detectors in one file are told apart."""
    model = arrays_of("detectron2", state, full_meta_of(SMALL))
    starts = {"fpn": "backbone.", "box": "roi_heads."}
    long = {starts.get(n[:3], "backbone.bottom_up.") + n: torch.tensor(x) for n, x in model.items()}
    long["proposal_generator.rpn_head.conv.weight"] = torch.zeros(3)
    content = {"model": long, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}
    content |= {"scheduler": {"last_epoch": 9}, "iteration": 89999}
    torch.save(content, tmp_path / "model_final.pth")
    found = read(tmp_path / "model_final.pth", "detectron2")
    ours = networks(state)
    assert {path.split("/")[2] for path in found.arrays} == {"backbone", "fpn", "head"}
    demand_equal(found.arrays, {path: ours[path] for path in found.arrays})
    assert any("not read: 1 arrays (proposal_generator" in note for note in found.notes)
    slower = {n: x + 1 for n, x in long.items()}
    content["model"] = behind("modelTeacher.", slower) | behind("modelStudent.", long)
    torch.save(content, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match="networks: modelTeacher, modelStudent; choose one"):
        read(tmp_path / "teacher.pth", "detectron2")
    found = read(tmp_path / "teacher.pth", "detectron2", "modelStudent")
    demand_equal(found.arrays, {path: ours[path] for path in found.arrays})


@pytest.mark.parametrize(
    "start, end",
    [("fpn_", "norm."), ("fpn_lateral2.", ""), ("fpn_output2.", "")],
    ids=["stock Detectron2 has no norms", "RetinaNet has no P2", "output alone"],
)
def test_an_fpn_of_another_form_is_left_out_with_a_word(tmp_path, state, start, end):
    model = arrays_of("detectron2", state, full_meta_of(SMALL))
    left = {n: x for n, x in model.items() if not (n.startswith(start) and end in n)}
    assert len(left) < len(model)
    formats.write_pickle(tmp_path / "a.pkl", left, {})
    found = read(tmp_path / "a.pkl", "detectron2")
    assert {path.split("/")[2] for path in found.arrays} == {"backbone", "head"}
    words = "fpn is of another form (no norms, or other levels): not read, it starts anew"
    assert words in found.notes
    del model["fpn_lateral4.norm.bias"]  # one array missing is damage
    formats.write_pickle(tmp_path / "a.pkl", model, {})
    with pytest.raises(UserError, match="1 problem: missing fpn_lateral4.norm.bias$"):
        read(tmp_path / "a.pkl", "detectron2")


def test_what_of_a_file_detectron2_itself_will_load(tmp_path, state):
    """scripts/finetune_detectron2.py gives Detectron2 the file's name; so what it reads must be so."""
    short = arrays_of("detectron2", state, full_meta_of(SMALL))
    formats.write_pickle(tmp_path / "export.pkl", short, {})
    shapes, lines = detectron2_check.read_weights(tmp_path / "export.pkl")
    assert shapes == {name: x.shape for name, x in short.items()}
    assert lines == [f"{tmp_path}/export.pkl: {len(short)} arrays (backbone, FPN, box head)"]
    starts = {"fpn": "backbone.", "box": "roi_heads."}
    long = {starts.get(n[:3], "backbone.bottom_up.") + n: torch.tensor(x) for n, x in short.items()}
    torch.save({"model": long, "iteration": 9}, tmp_path / "model_final.pth")
    shapes, _ = detectron2_check.read_weights(tmp_path / "model_final.pth")
    assert shapes == {name: tuple(x.shape) for name, x in long.items()}
    assert detectron2_check.loaded(shapes, shapes)[0].startswith(f"{len(long)} of {len(long)} ")
    (tmp_path / "final.pkl").write_bytes((tmp_path / "model_final.pth").read_bytes())
    (tmp_path / "export.pth").write_bytes((tmp_path / "export.pkl").read_bytes())
    torch.save({"model": behind("net.", long)}, tmp_path / "net.pth")
    torch.save({n: torch.tensor(x) for n, x in short.items()}, tmp_path / "short.pth")
    save_file(long, tmp_path / "a.safetensors")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(short))
    for name, words in (
        ("final.pkl", "is a file of torch: Detectron2 goes by its name, rename it to .pth"),
        ("export.pth", "is a file of pickle: Detectron2 goes by its name, rename it to .pkl"),
        ("net.pth", "has its names behind 'model.net.', where Detectron2 does not look"),
        ("short.pth", "has short names (stem.conv1.weight) and no 'matching_heuristics'"),
        (
            "bare.pkl",
            "lacks 'model' or '__author__', so that Detectron2 would take it for a file of C",
        ),
        ("a.safetensors", "is safetensors, which Detectron2 does not read: mcl-jax convert"),
    ):
        with pytest.raises(UserError) as caught:
            detectron2_check.read_weights(tmp_path / name)
        assert words in str(caught.value)


def test_the_reader_needs_no_jax(tmp_path, pair):
    save_npz(pair[0], tmp_path / "a.npz")
    code = (
        "import pathlib, sys; sys.modules.update(dict.fromkeys(('jax', 'flax', 'torch')));"
        "from mcl_jax.convert.checks import detectron2_check;"
        "from mcl_jax.convert.files import weights;"
        f"found = weights.read(pathlib.Path({str(tmp_path / 'a.npz')!r}), 'torchvision');"
        "print(len(found.arrays))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{len(pair[0])}\n", done.stderr


def test_the_command_wants_one_network(tmp_path, pair, capsys):
    """That it takes the one of the flag, tests/test_convert_imports.py shows."""
    path, out = tmp_path / "moco.pth.tar", tmp_path / "run"
    torch.save(PROJECTS["moco v2"].content(*pair), path)
    err = fails(capsys, path, "--from", "torchvision", "--out", out)
    assert "networks: encoder_q, encoder_k; choose one with --network NAME" in err
    err = fails(capsys, path, "--to", "timm", "--network", "x", "--out", out)
    assert "--network belongs to --from" in err
    err = fails(capsys, path, "--from", "mcl-official", "--network", "x", "--out", out)
    assert "--from mcl-official always reads all networks" in err and not out.exists()


def test_a_file_of_another_library_says_which_origin_reads_it(tmp_path, pair):
    path = tmp_path / "a.pth"
    for content, origin, right in (
        (pair[0], "mmdet", "torchvision's ResNet: give --from torchvision"),
        (pair[0], "detectron2", "torchvision's ResNet: give --from torchvision"),
        (behind("backbone.body.", pair[0]), "mmdet", "torchvision's detector: give"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=right):
            weights.read(path, origin)
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3), "cls_token": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="as a ViT does: ResNets and Swin are read"):
        weights.read(path, "torchvision")
