"""Files that hold no weights, or more than weights: each is refused in one line that says what it is
and what would do.

Shapes: torchvision's, of one small ResNet-10.
"""

import argparse
import collections
import gzip
import io
import os
import pickle
import shlex
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from convert_states import arrays_of, full_meta_of, random_state
from test_convert_imports import R10
from test_convert_refusals import fails
from torch_or_skip import module_on_torch, torch

from mcl_jax.configs import base
from mcl_jax.convert import imports
from mcl_jax.convert.files import content, weights
from mcl_jax.errors import UserError

save_file = module_on_torch("safetensors.torch").save_file

HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WRONG_PAGE = "fetch it again, from the link to the file itself"


@pytest.fixture(scope="module")
def arrays():
    return arrays_of("torchvision", random_state(R10, 0), full_meta_of(R10))


@pytest.fixture(scope="module")
def tensors(arrays):
    return {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}


def saved(tree, **options):
    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pth"), io.BytesIO(b""))
    return buffer.getvalue()


def refusal(path, origin="torchvision"):
    """What is said of a file: one line, without terminal codes."""
    with pytest.raises(UserError) as caught:
        imports.read(path, origin, base.get_config(), adopt=True)
    return checked(str(caught.value))


def checked(text):
    assert text.isprintable() and "Traceback" not in text and len(text) < 4000
    return text


STRANGERS = {
    "empty": (b"", "is empty"),
    "page": (HTML, f"is a web page (HTML), not weights: {WRONG_PAGE}"),
    "page with mark": (b"\xef\xbb\xbf\n" + HTML, "is a web page (HTML)"),
    "denied": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML, not"),
    "lfs": (LFS, "is a git-lfs pointer, not the weights: run `git lfs pull` there"),
    "index": (b'{"weight_map": {"conv1.weight": "model-1.bin"}}', "is text (JSON), not weights"),
    "gzip": (gzip.compress(HTML), "is a gzip archive: unpack it"),
    "tar": (tarred(), "is a tar archive: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive: unpack it"),
    "zip": (zipped("a/model.pth", "a/readme.txt"), "is a zip archive: unpack it"),
    "empty zip": (zipped(), "it is empty"),
    "cut zip": (zipped("a/data.pkl")[:40], "it is a zip without its table of contents"),
    "script": (zipped("m/data.pkl", "m/constants.pkl"), "is a TorchScript archive: load it with"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5, as Keras writes it"),
    "npy": (b"\x93NUMPY\x01\0v\0", "is one array (.npy): give an .npz"),
    "text": (
        b"resnet50 weights are on the shared disk",
        "no format of weights begins with b'resnet5",
    ),
    "bytes": (bytes(range(255, 0, -1)), "no format of weights begins with"),
    "cut pickle": (pickle.dumps({"a": np.zeros(9)})[:60], "is not a readable pickle"),
    "cut safetensors": (b"\x40\0\0\0\0\0\0\0{", "is not a readable .safetensors"),
    "list": (pickle.dumps([1, "a"]), "holds a list, not a dict of arrays"),
    "no arrays": (pickle.dumps({"model": {"a": 1}}), "has no array under model.a"),
    "empty dict": (saved({}), "has no array under any name: it is an empty dict"),
    "one tensor": (saved(torch.zeros(3)), "holds no torchvision detector or classifier"),
    "objects": (pickle.dumps({"a": np.array([{}])}), "has no array under a"),
    "numbers as names": (saved({0: torch.zeros(3), 1: 2}), "it begins with 0"),
    "terminal": (pickle.dumps({"\x1b[31mred\nline": np.zeros(3)}), "it begins with ?[31mred?line"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_file_is_that_holds_no_weights(tmp_path, name):
    data, words = STRANGERS[name]
    for suffix in (".pth", ".pkl"):
        (tmp_path / f"a{suffix}").write_bytes(data)
        assert words in refusal(tmp_path / f"a{suffix}")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    kinds = {"": "is a folder", "missing.pth": "does not exist", "loop": "is a link to 'loop'"}
    kinds |= {"pipe": "is no file that can be read twice", "x" * 300: "File name too long"}
    for name, kind in kinds.items():
        assert kind in refusal(tmp_path / name)
    assert ".pth.tar, .pt, .bin" in refusal(tmp_path)


def run_advice(text):
    """Runs the command that a refusal gives, in this process; returns the file that it writes."""
    command = shlex.split(text[text.index("python -c ") :])
    assert command[:2] == ["python", "-c"] and len(command) == 5
    arguments, sys.argv = sys.argv, ["-c", *command[3:]]
    try:
        exec(command[2], {})
    finally:
        sys.argv = arguments
    return command[4]


@pytest.mark.parametrize("old", [False, True])
def test_numbers_of_numpy_beside_the_tensors_are_passed_over(tmp_path, arrays, tensors, old):
    numbers = {
        "best": np.float64(71.3),
        "losses": np.arange(3),
        "loss": np.float32(2),
        "n": [np.int64(1)],
    }
    data = saved(numbers | {"state_dict": tensors}, _use_new_zipfile_serialization=not old)
    (tmp_path / "a.pth").write_bytes(data)
    found = weights.read(tmp_path / "a.pth", "torchvision")
    assert set(found.arrays) == set(arrays)
    np.testing.assert_array_equal(found.arrays["conv1.weight"], arrays["conv1.weight"])


class Options:
    """A class of somebody's training code."""


@pytest.mark.parametrize("old", [False, True])
def test_other_objects_beside_the_weights_and_how_to_leave_them_out(tmp_path, arrays, tensors, old):
    path = tmp_path / "it's a model.pth"
    for other, name in ((argparse.Namespace(lr=1), "argparse.Namespace"), (Options(), "Options")):
        options = {"_use_new_zipfile_serialization": not old}
        path.write_bytes(saved({"model": tensors, "epoch": 3, "args": other}, **options))
        text = refusal(path)
        assert f"weights_only=True): beside tensors it holds {name}" in text or name in text
        found = weights.read(type(path)(run_advice(text)), "torchvision")
        np.testing.assert_array_equal(found.arrays["conv1.weight"], arrays["conv1.weight"])
        assert set(found.arrays) == set(arrays)


def test_whole_modules_and_pickled_tensors_and_how_to_save_their_weights(tmp_path):
    network = torch.nn.Sequential(collections.OrderedDict(conv1=torch.nn.Conv2d(3, 4, 7)))
    (tmp_path / "a.pth").write_bytes(saved({"ema": network}))
    text = refusal(tmp_path / "a.pth")
    assert "beside tensors it holds torch.nn.modules" in text
    assert list(weights.flatten(content.load(type(tmp_path)(run_advice(text))), "")) == [
        "ema.conv1.weight",
        "ema.conv1.bias",
    ]
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"x": torch.ones(3), "n": Options()}))
    text = refusal(tmp_path / "b.pkl")
    assert "it names torch._utils._rebuild_tensor_v2" in text
    leaves = weights.flatten(content.load(type(tmp_path)(run_advice(text))), "")
    np.testing.assert_array_equal(leaves["x"], np.ones(3))


@pytest.mark.parametrize(
    "name",
    ["layer3.4.conv1.weight", "layer1.0.se.fc1.weight", "layer4.40.bn3.bias", "conv1.3.weight"],
)
def test_a_larger_network_is_not_taken_for_the_smaller_one_in_it(tmp_path, tensors, name):
    """ResNet-152 has all names of ResNet-101; a Swin-S those of a Swin-T."""
    torch.save(tensors | {name: torch.zeros(3)}, tmp_path / "a.pth")
    text = refusal(tmp_path / "a.pth")
    assert "holds another network than resnet10" in text
    assert f"1 arrays of its backbone have no place in it ({name})" in text


def test_tensors_that_numpy_cannot_hold(tmp_path, tensors):
    path = tmp_path / "a.pth"
    for odd in (torch.zeros(4, 3, 7, 7, device="meta"), torch.zeros(4, 3, 7, 7).to_sparse()):
        torch.save(tensors | {"conv1.weight": odd}, path)
        assert "conv1.weight is a tensor that numpy cannot hold" in refusal(path)
    save_file({"x": torch.zeros(3, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert "numbers of type F8_E4M3, which numpy lacks" in refusal(tmp_path / "a.safetensors")


def test_the_command_refuses_as_the_reader_does(tmp_path, capsys, tensors):
    contents = {"page.pth": HTML, "pointer.bin": LFS, "empty.ckpt": b""}
    contents["args.pth"] = saved({"model": tensors, "args": argparse.Namespace(lr=1)})
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        for origin in ("torchvision", "timm", "mmdet", "detectron2", "safetensors", "mcl-official"):
            err = fails(capsys, tmp_path / name, "--from", origin, "--out", tmp_path / "run")
            assert name in err and not (tmp_path / "run").exists()
