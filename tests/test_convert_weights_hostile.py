"""Weight files that are made to do harm, or damaged: nothing in them is executed, nothing is written,
and what cannot be read is refused in one line.

Shapes: torchvision's, of one small ResNet-10.
"""

import collections
import os
import pickle
import random
import resource

import numpy as np
import pytest
from convert_states import arrays_of, full_meta_of, random_state
from test_convert_imports import R10
from test_convert_refusals import Malicious
from test_convert_weights_refusals import STRANGERS, checked, refusal, saved
from torch_or_skip import module_on_torch, torch
from weights_of_projects import behind

from mcl_jax.configs import base
from mcl_jax.convert import imports
from mcl_jax.convert.files import content, weights
from mcl_jax.convert.targets import authors_files
from mcl_jax.errors import UserError

save_file = module_on_torch("safetensors.torch").save_file

FUZZED = 300


def test_containers_that_hold_themselves_or_never_end(tmp_path):
    itself = {"a": np.zeros(3)}
    itself["again"] = itself
    doubled = [np.zeros(1)]
    deep = np.zeros(1)
    for _ in range(60):
        doubled, deep = [doubled, doubled], (deep,)
    for tree in (itself, {"x": doubled, "y": np.zeros(2)}, {"x": deep, "y": np.zeros(2)}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree))
        assert "holds no torchvision detector" in refusal(tmp_path / "a.pkl")


def test_two_arrays_of_one_name(tmp_path):
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"a": {"b.c": np.ones(1)}, "a.b": {"c": np.ones(1)}})
    )
    assert "holds two arrays of the name a.b.c" in refusal(tmp_path / "a.pkl")


class Writes:
    """Writes a file wherever it is unpickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


BOMBS = [
    Malicious(),
    Writes((os.system, ("touch owned",))),
    Writes((eval, ("open('owned', 'w')",))),
    Writes((np.save, ("owned", np.zeros(3)))),
    Writes((np.ndarray.tofile, (np.zeros(3), "owned"))),
    Writes((torch.save, (3, "owned"))),
    Writes((torch.load, ("a.pth",))),
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__reduce__()[0].__name__)
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, bomb):
    monkeypatch.chdir(tmp_path)
    tree = {"state_dict": {"conv1.weight": np.zeros(3)}, "x": bomb}
    files = [pickle.dumps(tree, protocol=protocol) for protocol in range(6)]
    files += [saved(tree), saved(tree, _use_new_zipfile_serialization=False)]
    path = tmp_path / "a.pth"
    for data in files:
        path.write_bytes(data)
        for read in (weights.read, lambda path, _: authors_files.read(path)):
            with pytest.raises(UserError) as caught:
                read(path, "torchvision")
            checked(str(caught.value))
    np.savez(tmp_path / "b.npz", x=np.array([bomb], dtype=object))
    assert "Object arrays cannot be loaded" in refusal(tmp_path / "b.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.npz"]


def test_a_pickle_cannot_make_numpy_believe_that_numbers_are_objects(tmp_path):
    """numpy's own unpickling takes the flags of a dtype from the file, and then reads its addresses."""
    plain = pickle.dumps({"a": np.arange(4, dtype=np.float32)}, protocol=2)
    end = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
    assert plain.count(end + b"\0") == 1
    (tmp_path / "a.pkl").write_bytes(plain.replace(end + b"\0", end + b"\x3f"))
    leaves = weights.flatten(content.load(tmp_path / "a.pkl"), "a.pkl")
    np.testing.assert_array_equal(leaves["a"], np.arange(4))
    assert not leaves["a"].dtype.hasobject


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x0f.",  # the memo's entry number 2^28
        b"\x80\x05\x96"
        + (1 << 32).to_bytes(8, "little")
        + b"ab.",  # 4 GiB of bytes that are not there
    ],
)
def test_a_pickle_cannot_take_memory_that_it_does_not_fill(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(tmp_path / "a.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def damage(data, r):
    """A file with something wrong with it."""
    data, kind = bytearray(data), r.randrange(6)
    at = r.randrange(len(data)) if r.random() < 0.5 else r.randrange(min(400, len(data)))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for _ in range(r.choice((1, 3, 30))):
            data[r.randrange(len(data))] = r.randrange(256)
    elif kind == 2:
        data[at : at + r.randrange(1, 64)] = r.randbytes(r.randrange(64))
    elif kind == 3:
        data[at : at + r.randrange(1, 4096)] = bytes(r.randrange(1, 4096))
    elif kind == 4:
        data = data[at:]
    else:  # where names and sizes stand
        data[at] ^= 1 << r.randrange(8)
    return bytes(data)


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = arrays_of("torchvision", random_state(R10, 0), full_meta_of(R10))
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    r = random.Random(0)
    save_file(tensors, tmp_path / "s")
    np.savez(tmp_path / "n.npz", **arrays)
    sources = [
        saved({"state_dict": behind("module.encoder_q.", tensors), "epoch": 3}),
        saved(tensors, _use_new_zipfile_serialization=False),
        pickle.dumps({"model": dict(arrays), "__author__": "me"}),
        pickle.dumps({"model": dict(arrays)}, protocol=0),
        (tmp_path / "s").read_bytes(),
        (tmp_path / "n.npz").read_bytes(),
        *(data for data, _ in STRANGERS.values() if data),
    ]
    counts = collections.Counter()
    for number in range(FUZZED):
        # The six formats in turn, and now and then what is no weights.
        data = sources[number % 6 if number % 10 else r.randrange(len(sources))]
        path = tmp_path / f"a{r.choice(content.SUFFIXES)}"
        path.write_bytes(damage(data, r))
        before = sorted(tmp_path.iterdir())
        for read in (
            lambda: imports.read(path, "torchvision", base.get_config(), adopt=True),  # noqa: B023
            lambda: authors_files.read(path),  # noqa: B023
        ):
            try:
                read()
                counts["read"] += 1
            except UserError as error:
                checked(str(error))
                counts["refused"] += 1
        assert sorted(tmp_path.iterdir()) == before
        path.unlink()
    assert counts["read"] + counts["refused"] == 2 * FUZZED
    assert counts["read"] > FUZZED / 20 and counts["refused"] > FUZZED
    print(dict(counts))
