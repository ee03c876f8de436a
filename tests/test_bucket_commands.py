"""Commands whose folders are in a bucket, on a disk, or one here and one there."""

import json
import sys

import command_line
import jax
import numpy as np
import pytest
from conftest import perturbed, tiny_config
from torch_or_skip import need_torch

from mcl_jax import program, sharding
from mcl_jax.commands import main
from mcl_jax.runtime import checkpoint, storage
from mcl_jax.state import TrainState


@pytest.fixture(scope="module")
def on_disk(request, tmp_path_factory):
    """A checkpoint of the smallest network of a method, untrained."""
    config = tiny_config()
    config.method = request.param
    config.data.split, config.data.batch_size = "train[:32]", 16
    config.data.image_size = config.data.canvas_size = 32
    config.model.head_convs, config.knn.max_images, config.knn.batch_size = 1, 32, 16
    built = program.build(config, sharding.make_mesh(jax.devices()[:1]), images=32)
    state = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), program.abstract_state(built))
    state = state.replace(step=np.int32(6), params=perturbed(state.params))
    workdir = tmp_path_factory.mktemp("disk") / "run"
    checkpoint.write(workdir, state, {"config": program.plain_config(config)})
    return workdir


@pytest.fixture(scope="module")
def run(gcs, on_disk):
    """The same in the bucket."""
    state, meta = checkpoint.read(on_disk)
    workdir = storage.locate(f"gs://mcl/{meta['config']['method']}")
    checkpoint.write(workdir, TrainState(**state), meta)
    return workdir


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command line in this process; its stdout, or stderr if it is to end with 2."""

    def call(*arguments, code=0):
        command_line.forget()
        with pytest.raises(SystemExit) as end:
            main.main(list(map(str, arguments)))
        told = capsys.readouterr()
        assert (end.value.code or 0) == code, told.err
        return told.err if code else told.out

    for name in ("argv", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    yield call
    command_line.forget()


@pytest.mark.parametrize("on_disk", ["mcl"], indirect=True)
def test_weights_go_from_buckets_and_disks_to_both_and_back(run, on_disk, tmp_path, command):
    need_torch()
    pairs = ((run, "gs://mcl/exported"), (run, tmp_path / "exported"), (on_disk, "gs://mcl/second"))
    for source, out in pairs:
        assert f"wrote {out}/mcl_" in command(
            "convert", source, "--to", "torchvision", "--out", out
        )
        place = storage.locate(out)
        report = json.loads(storage.read(place / "report.json"))
        assert storage.digest(place / report["file"]) == report["sha256"]
        assert "mcl resnet10" in storage.read(place / "card.html").decode()
    for out in ("gs://mcl/theirs/mcl.npz", tmp_path / "mcl.npz"):
        command("convert", run, "--to", "mcl-official", "--out", out)
    assert (
        storage.read(storage.locate("gs://mcl/theirs/mcl.npz"))
        == (tmp_path / "mcl.npz").read_bytes()
    )
    command(
        "convert", tmp_path / "mcl.npz", "--from", "mcl-official", "--out", "gs://mcl/continued"
    )
    ours, theirs = (
        checkpoint.read(place)[0]["params"] for place in (on_disk, "gs://mcl/continued")
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.mark.parametrize("on_disk", ["byol"], indirect=True)  # quicker: no pyramid, no montage
def test_a_checkpoint_in_a_bucket_is_measured_and_looked_at(run, on_disk, command):
    assert "scenes, step 6" in command("knn", f"--workdir={run}", "--json=gs://mcl/knn.json")
    result = json.loads(storage.read(storage.locate("gs://mcl/knn.json")))
    assert result["step"] == 6 and 0 <= result["values"]["knn"] <= 1

    splits = ("--dataset=scenes", "--train_split=train[:64]", "--test_split=validation[:32]")
    command("svm", f"--workdir={run}", *splits, "--stages=res5", "--shots=", "--json=gs://mcl/svm")
    assert json.loads(storage.read(storage.locate("gs://mcl/svm")))["step"] == 6
    output = storage.locate("gs://mcl/linear")
    brief = ("--lrs=1", "--epochs=1", "--batch_size=32")
    command("linear", f"--workdir={run}", f"--output={output}", *splits, *brief)
    assert 0 <= json.loads(storage.read(output / "result.json"))["best"]["top1"] <= 1

    looked_at = ["--against", on_disk, "--count", 2, "--rows", 1]
    assert f"wrote {run}/pictures/features.png" in command("visualize", run, *looked_at)
    pictures = storage.names(run / "pictures")
    assert {"features.png", "retrieval.png", "montage.png", "activation.png"} == {*pictures}
    for name in pictures:
        assert storage.read(run / "pictures" / name).startswith(b"\x89PNG")


@pytest.mark.parametrize("place", ["gs://nowhere/run", "gs://mcl/nothing", "gs://mcl/secret"])
def test_what_cannot_be_read_is_one_line(place, gcs, tmp_path, command):
    gcs.outage = 401 if "secret" in place else None
    export = ("--to", "torchvision", "--out", tmp_path / "exported")
    try:
        for line in (
            ("knn", f"--workdir={place}"),
            ("convert", place, *export),
            ("visualize", place),
            ("summary", place),
        ):
            said = command(*line, code=2)
            assert said.startswith("error: ") and said.count("\n") == 1 and place in said
    finally:
        gcs.outage = None
    assert not list(tmp_path.iterdir())
