"""Every path that a command writes to: in a bucket as on a disk, or refused before the work begins."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import command_line
import cv2
import numpy as np
import pytest
from absl import flags

from mcl_jax import path_flags
from mcl_jax.bench import accelerator, loader, probe, start, step
from mcl_jax.commands import registry
from mcl_jax.convert.finetuning import library
from mcl_jax.errors import UserError
from mcl_jax.finetune import flags as finetuning
from mcl_jax.planning import plan, topology
from mcl_jax.runtime import storage

# of ml_collections, which loads configurations
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
BUCKET = "gs://mcl/results"
CONFIG = ("--config", "demo")
# (command, flag) -> (the rest of the command line, what is in the bucket afterwards)
LANDS = {
    ("bench data", "json"): ((), "x"),
    ("bench probe", "json"): (CONFIG, "x"),
    ("bench start", "json"): (CONFIG, "x"),
    ("bench step", "json"): (CONFIG, "x"),
    ("plan", "json"): ((*CONFIG, "--topology=cpu:8", "--cache="), "x"),
    ("instance-sizes", "json"): ((), "x"),
    ("instance-sizes", "output"): ((), "x"),
    ("bench gpu", "out"): ((*CONFIG, "--minutes=0", "--scratch=s"), "x/speed.json"),
    ("study", "document"): (("--config=study_scenes", "--figure=labels", "--results=r"), "x"),
    ("coco-subset", "out"): (("a.b.json", "--percent", "50"), "x/a.b_50percent.json"),
}
REFUSED = {
    ("bench gpu", "scratch"): CONFIG,
    ("plan", "cache"): (*CONFIG, "--topology=cpu:8"),
    ("torture", "scratch"): (),
    **{("prepare imagenet", name): () for name in ("train_tar", "val_tar", "val_labels", "meta")},
    **{("prepare coco", f"{name}_zip"): () for name in ("train", "val", "unlabeled", "annotations")},
    ("prepare folder", "folder"): ("--name=x",),
    ("prepare tfrecord", "input"): (),
    **{(f"prepare {kind}", "data_dir"): rest for kind, rest in {
        "imagenet": (), "coco": ("--annotations_zip=a",), "folder": ("--folder=.", "--name=x"),
        "tfrecord": ("--input=.",),
    }.items()},
}  # fmt: skip
# written by test_bucket_commands.py and test_bucket_runs.py
ELSEWHERE = {
    *(("pretrain", "workdir"), ("study", "workdir"), ("study", "results")),  # test_study.py too
    *(("knn", "json"), ("svm", "json"), ("linear", "output"), ("probe", "output")),
    *(("convert", "out"), ("visualize", "out")),
}
READ = {  # what is not there is one line
    *((name, "workdir") for name in ("knn", "linear", "svm", "probe", "summary")),
    *((name, "data_dir") for name in ("knn", "linear", "svm", "probe", "instance-sizes")),
    *((name, f"{part}_{kind}") for name in ("svm", "probe") for part, kind in (
        ("train", "json"), ("train", "images"), ("test", "json"), ("test", "images"),
    )),
    *(("convert", "source"), ("coco-subset", "annotations")),
    *(("visualize", name) for name in ("checkpoint", "images", "against")),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current folder with an annotation file and a data set; nothing is measured."""
    one = {"id": 1, "file_name": "1.png", "height": 8, "width": 9}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    content = {"images": [one], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.b.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/1.png"), np.zeros((8, 9, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    for module, name, result in (
        *((module, "as_text", "") for module in (loader, start)),
        *((loader, "benchmark", []), (loader, "ratio", 2.0), (probe, "compare", {})),
        *((start, "measure", {}), (step, "measure", {}), (accelerator, "describe_machine", {})),
        *((plan, "make", {}), (plan, "describe", ""), (topology, "prepare_process", None)),
    ):
        monkeypatch.setattr(module, name, lambda *_, result=result, **__: result)
    return tmp_path


@pytest.mark.parametrize(("command", "flag"), LANDS)
def test_a_result_lands_in_the_bucket(gcs, place, capsys, command, flag):
    rest, name = LANDS[command, flag]
    if command == "instance-sizes":
        rest = (f"--dataset=folder:{place / 'images'}", "--split=train")
    suffix = {"output": ".png", "document": ".md"}.get(flag, "")
    storage.remove(storage.locate(BUCKET))
    out = f"--{flag}={BUCKET}/x{suffix}"
    assert command_line.run(*command.split(), *rest, out) == 0, capsys.readouterr().err
    assert storage.is_file(storage.locate(f"{BUCKET}/{name}{suffix}"))
    assert not list(place.rglob("gs:*"))


@pytest.mark.parametrize(("command", "flag"), REFUSED)
def test_what_a_bucket_cannot_hold_is_refused_at_the_door(place, capsys, command, flag):
    needed = ("--data_dir=new",) if command.startswith("prepare") and flag != "data_dir" else ()
    if flag not in ("annotations_zip", "data_dir") and command == "prepare coco":
        needed += ("--annotations_zip=a",)
    before = sorted(place.rglob("*"))
    line = (*command.split(), *REFUSED[command, flag], *needed, f"--{flag}={BUCKET}/x")
    assert command_line.run(*line) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: --{flag} {BUCKET}/x: this command uses disks alone; give a path of this machine\n"
    )
    assert sorted(place.rglob("*")) == before


def test_finetuning_writes_to_disks_alone():
    given = ("--random", *(f"--{name}=x" for name in finetuning.DATA))
    with pytest.raises(UserError, match="folder gs://mcl/x: this command uses disks alone"):
        finetuning.parse("", ["gs://mcl/x", *given])


def test_detectron2_writes_to_disks_alone(place):
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match="OUTPUT_DIR gs://mcl/x: this command uses disks alone"):
        library.demand_output(SimpleNamespace(OUTPUT_DIR="gs://mcl/x"))
    assert sorted(place.rglob("*")) == before


def path_flags_of(command: registry.Command) -> set[tuple[str, str]]:
    """(command, flag) of all of its paths."""
    command_line.forget()
    module = command.module()
    if not hasattr(module, "parser"):
        defined = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
        return {(command.name, f.name) for f in defined if f.name in path_flags.DOORS}
    parsers = {command.name: module.parser("")}
    for action in parsers[command.name]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers |= {f"{command.name} {kind}": p for kind, p in action.choices.items()}
    return {
        (name, action.option_strings[-1].lstrip("-") if action.option_strings else action.dest)
        for name, parser in parsers.items()
        for action in parser._actions
        if action.type is Path or (" " in name and action.nargs != 0 and action.type is None)
    }


def test_every_path_of_every_command_is_tried():
    try:
        found = set().union(*map(path_flags_of, registry.COMMANDS))
    finally:
        command_line.forget()
    assert found - {("prepare folder", "name")} == {*LANDS, *REFUSED, *ELSEWHERE, *READ}
