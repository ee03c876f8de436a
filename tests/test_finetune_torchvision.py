"""Fine-tuning with torchvision itself; skipped where it is not installed.

    python -m pytest --noconftest tests/test_finetune_torchvision.py

runs it in an environment with torch, torchvision, pycocotools and pytest, without JAX.
Shapes: see mcl_jax/finetune/images.py.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from mcl_jax import exit_codes  # noqa: E402
from mcl_jax.errors import CannotSave, UserError  # noqa: E402
from mcl_jax.finetune import job, machine, names, networks, run, training  # noqa: E402
from mcl_jax.finetune.job import Job  # noqa: E402
from mcl_jax.finetune.settings import FinetuneSettings  # noqa: E402
from mcl_jax.runtime import machine as machine_record  # noqa: E402

SMALL = FinetuneSettings(
    backbone="resnet18",
    fpn_channels=32,
    head_convs=1,
    head_features=32,
    smallest_anchor=8,
    roi_batch=16,
    proposals_train=50,
    proposals_test=20,
    min_sizes=(48, 64),
    max_size=96,
    steps=4,
    batch_size=2,
    warmup_steps=2,
    eval_batch_size=2,
    area_bounds=(16.0, 32.0),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red and blue rectangles on noise, with polygons."""
    root = tmp_path_factory.mktemp("rectangles")
    rng, images, annotations = np.random.default_rng(0), [], []
    for i in range(8):
        pixels = rng.integers(0, 80, (64, 80, 3), np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 80})
        for label, left in ((1, 4), (2, 44)):
            x, y, w, h = left + i, 10 + i, 24, 30
            pixels[y : y + h, x : x + w] = (230, 30, 30) if label == 1 else (30, 30, 230)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            entry = {"id": len(annotations) + 1, "image_id": i, "category_id": label}
            annotations.append(entry | {"bbox": [x, y, w, h], "segmentation": [polygon]})
        Image.fromarray(pixels).save(root / f"{i}.png")
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def job_in(folder, out, **changes):
    data = {"train_json": folder / "instances.json", "train_images": folder}
    data |= {"test_json": folder / "instances.json", "test_images": folder}
    own = dataclasses.replace(SMALL, **changes)
    return Job(folder=out, weights=None, **data, settings=own, device="cpu", threads=1)


def read_weights(path, network):
    assert network is None
    return {name: x.numpy() for name, x in torch.load(path, weights_only=True).items()}, []


def do(task):
    return run.run(task, read_weights, say=lambda line: None)


def weights_in(out):
    return torch.load(out / training.CHECKPOINT, weights_only=True)["detector"]


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn", "retinanet"])
def test_our_detectors_are_torchvisions_but_for_norms_in_retinanets_fpn(detector):
    stock = getattr(torchvision.models.detection, f"{detector}_resnet50_fpn_v2")
    stock = networks.shapes(stock(weights=None, weights_backbone=None, num_classes=91))
    own = networks.shapes(networks.build(FinetuneSettings(detector=detector), 90))
    differing = {name for name in {**stock, **own} if stock.get(name) != own.get(name)}
    if detector != "retinanet":
        assert not differing and list(stock) == list(own)
    else:
        start = ("backbone.fpn.inner_blocks.", "backbone.fpn.layer_blocks.")
        assert differing and all(name.startswith(start) for name in differing)


@pytest.mark.parametrize("detector", ["maskrcnn", "retinanet"])
def test_the_lists_of_names_in_tests_data_are_current(detector):
    rows = (ROOT / f"tests/data/keys_torchvision_{detector}_resnet18.txt").read_text().splitlines()
    model = networks.build(
        FinetuneSettings(detector=detector, backbone="resnet18"), 90
    ).state_dict()
    kinds = {name: str(x.dtype).removeprefix("torch.") for name, x in model.items()}
    assert rows == [f"{n}\t{tuple(x.shape)}\t{kinds[n]}" for n, x in model.items()]


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn", "retinanet"])
def test_a_killed_run_ends_with_the_same_weights_and_detections(
    folder, tmp_path, detector, monkeypatch
):
    whole = do(job_in(folder, tmp_path / "whole", detector=detector))
    assert set(whole) >= {"scores", "settings", "device", "seconds", "losses", "identity"}
    assert ("mask_scores" in whole) == (detector == "maskrcnn")
    assert (tmp_path / "whole" / job.PICTURE).is_file()

    class Killed(BaseException):
        pass

    take_step, steps = training.take_step, []

    def dies(state, *args):
        steps.append(state.step)
        if len(steps) == 4:
            raise Killed
        return take_step(state, *args)

    task = job_in(folder, tmp_path / "killed", detector=detector)
    task = dataclasses.replace(task, checkpoint_steps=2)
    monkeypatch.setattr(training, "take_step", dies)
    with pytest.raises(Killed):
        do(task)
    monkeypatch.setattr(training, "take_step", take_step)
    resumed = do(task)
    for name, x in weights_in(tmp_path / "whole").items():
        assert torch.equal(x, weights_in(tmp_path / "killed")[name]), name
    read = [(tmp_path / x / job.DETECTIONS).read_text() for x in ("whole", "killed")]
    assert read[0] == read[1]
    assert resumed["losses"] == whole["losses"] and resumed["scores"] == whole["scores"]
    assert do(task) == resumed  # finished: only read


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(folder, tmp_path):
    task = job_in(folder, tmp_path / "out")
    record = machine_record.myself() | {"pid": os.getppid()}
    record["process_started"] = machine_record.start_of(record["pid"])
    (task.folder / "owner").mkdir(parents=True)
    (task.folder / "owner/1.json").write_text(json.dumps(record))
    before = sorted(task.folder.rglob("*"))
    with pytest.raises(UserError, match=f"out is in use: host .*, process {os.getppid()}, since"):
        do(task)
    assert sorted(task.folder.rglob("*")) == before
    (task.folder / "owner/1.json").write_text(json.dumps(record | {"process_started": "0"}))
    assert do(task)["losses"]  # its owner is gone
    assert not (task.folder / "owner").exists()


def test_a_disk_that_takes_no_more_is_one_line_and_the_checkpoint_before_stays(
    folder, tmp_path, monkeypatch
):
    task = dataclasses.replace(job_in(folder, tmp_path), checkpoint_steps=2)
    take_step, before = training.take_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills_up(state, *args):
        if state.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        return take_step(state, *args)

    monkeypatch.setattr(training, "take_step", fills_up)
    try:
        with pytest.raises(CannotSave, match=f"{training.CHECKPOINT} cannot be written: File too"):
            do(task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [training.CHECKPOINT]
    assert torch.load(tmp_path / training.CHECKPOINT, weights_only=True)["step"] == 2


def test_a_signal_stops_the_script_and_the_same_command_goes_on(folder, tmp_path):
    data = [f"--{kind}_json={folder / 'instances.json'}" for kind in ("train", "test")]
    data += [f"--{kind}_images={folder}" for kind in ("train", "test")]
    own = dataclasses.replace(SMALL, steps=200)
    values = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
    keys = [
        f"--{key}={','.join(map(str, x)) if isinstance(x, tuple) else x}"
        for key, x in values.items()
        if x is not None
    ]
    script = str(ROOT / "scripts/finetune_torchvision.py")
    command = [sys.executable, script, str(tmp_path / "out"), "--random", "--threads=1"]
    command += ["--checkpoint_steps=1", *data, *keys]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "out" / training.CHECKPOINT).is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == exit_codes.STOPPED, err
    assert "the same command goes on" in out
    step = torch.load(tmp_path / "out" / training.CHECKPOINT, weights_only=True)["step"]
    assert 1 <= step < 200 and f"stopped after step {step}" in out
    other = subprocess.run([*command, "--base_lr=0.5"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "holds another run, with base_lr 0.02 (now 0.5)" in other.stderr


def test_runs_to_compare_start_from_the_same_new_layers(folder, tmp_path):
    """Only what comes from the file differs from a random start."""
    torch.manual_seed(5)
    other = networks.build(SMALL, 2)
    body = {
        name.removeprefix(names.BODY): x
        for name, x in other.state_dict().items()
        if name.startswith(names.BODY)
    }
    torch.save(body, tmp_path / "classifier.pth")
    task = job_in(folder, tmp_path / "out")
    random, origin, _ = run.build(task, 2, read_weights)
    assert origin == {"weights": "random"}
    task = dataclasses.replace(task, weights=tmp_path)
    loaded, origin, _ = run.build(task, 2, read_weights)
    assert origin["parts"] == ["backbone"]
    damaged = body | {"bn1.bias": torch.full((64,), torch.nan)}
    torch.save(damaged, tmp_path / "classifier.pth")
    with pytest.raises(UserError, match="64 values that are not finite in bn1.bias"):
        run.build(task, 2, read_weights)
    random, loaded = random.state_dict(), loaded.state_dict()
    for name, x in loaded.items():
        from_file = name.startswith(names.BODY)
        source = other.state_dict() if from_file else random
        assert torch.equal(x, source[name]), name


def test_every_norm_is_trained_and_none_decays():
    detector = networks.build(SMALL, 2)
    assert all(x.requires_grad for x in detector.parameters())
    weights, norms = networks.optimizer(detector, SMALL).param_groups
    assert (weights["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    own = dataclasses.replace(SMALL, optimizer="adamw", weight_decay=0.05)
    adamw = networks.optimizer(detector, own)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.05, 0.0]
    count = sum(isinstance(m, torch.nn.BatchNorm2d) for m in detector.modules())
    assert len(norms["params"]) == 2 * count
    assert count == 20 + 8 + 1  # ResNet-18, FPN, a convolution of the box head


def test_a_loss_that_is_not_finite_stops_the_run(folder, tmp_path):
    task = job_in(folder, tmp_path / "out", base_lr=1e9, warmup_steps=0)
    with pytest.raises(UserError, match="the loss is .* at step .*: lower --base_lr"):
        do(task)


def test_a_few_steps_learn_rectangles(folder, tmp_path):
    """The labels, boxes and classes that training and test use are the same."""
    task = job_in(
        folder,
        tmp_path / "out",
        steps=160,
        batch_size=4,
        base_lr=0.2,
        min_sizes=(64,),
        labels=6,
        proposals_test=200,
        roi_batch=32,
    )
    result = do(task)
    losses = [loss for _, _, loss in result["losses"]]
    assert losses[-1] < losses[0]
    assert result["scores"]["ap50"] > 0.5, result["scores"]
    assert machine.versions() == result["versions"]
