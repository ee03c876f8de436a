"""Export to safetensors: every array as it is, and metadata that says where it comes from."""

import json
import subprocess

import numpy as np
import pytest
from convert_states import R18, export_to, full_meta_of, random_state
from safetensors import safe_open
from safetensors.numpy import load_file

from mcl_jax.convert.files import formats, strict
from mcl_jax.convert.names.layouts import networks
from mcl_jax.errors import UserError
from mcl_jax.runtime import provenance


def test_all_networks_come_back_bit_by_bit_with_their_origin(tmp_path):
    state, meta = random_state(R18, 2), full_meta_of(R18) | {"commit": "abc", "mcl_jax": "0.1"}
    written = export_to("safetensors", state, meta, tmp_path / "out")
    path = tmp_path / "out" / "mcl_resnet18.safetensors"
    assert path in written
    arrays, read = networks(state), load_file(path)
    assert set(read) == set(arrays)
    for name, x in arrays.items():
        assert read[name].dtype == x.dtype
        np.testing.assert_array_equal(read[name], x)
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    assert json.loads(about.pop("config")) == meta["config"]
    origin = {"method": "mcl", "step": "3", "git_commit": "abc", "mcl_jax": "0.1"}
    assert about == {"format": "mcl_jax"} | origin
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {row["name"] for row in content["tensors"]} == set(arrays)
    assert [part["source"] for part in content["left_out"]] == ["opt_state, memory"]


def test_a_value_that_is_not_finite_is_named_and_nothing_written(tmp_path):
    flat = strict.flatten(random_state(R18, 2))
    leaf = "params/encoder/fpn/lateral2/kernel"
    flat[leaf] = flat[leaf] * np.nan
    with pytest.raises(UserError, match=f"1 problem: {leaf} has"):
        export_to("safetensors", strict.unflatten(flat), full_meta_of(R18), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_back_otherwise_is_refused(tmp_path, monkeypatch):
    library = formats.import_safetensors().numpy
    save = library.save
    halves = lambda arrays, *rest: save(dict(list(arrays.items())[:-1]), *rest)  # noqa: E731
    monkeypatch.setattr(library, "save", halves)
    with pytest.raises(RuntimeError, match="does not read back"):
        export_to("safetensors", random_state(R18, 2), full_meta_of(R18), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_commit_is_that_of_this_checkout_and_says_what_was_changed(tmp_path, monkeypatch):
    package = tmp_path / "mcl_jax" / "runtime" / "provenance.py"
    package.parent.mkdir(parents=True)
    package.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(package))
    assert provenance.commit() == ""

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True
        ).stdout

    git("init", "-q")
    assert provenance.commit() == ""  # no commit yet
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD").decode().strip()
    assert provenance.commit() == head
    package.write_text("2")
    assert provenance.commit() == f"{head}+"
