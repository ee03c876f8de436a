"""Folders as they are found: odd names, what is left out, why there are no labels, the digest."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import toy_run
from image_folders import names_of, write_images

import mcl_jax
from mcl_jax import train
from mcl_jax.data import tree
from mcl_jax.data.record import data_digest, why_unlabeled
from mcl_jax.data.sources import open_source
from mcl_jax.errors import UserError
from mcl_jax.evaluate import pictures
from mcl_jax.evaluate.detection import report
from mcl_jax.finetune import job
from mcl_jax.runtime import checkpoint_folders, lease


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_names_may_be_any_bytes_and_are_shown_with_replacements(tmp_path):
    write_images(tmp_path, ["a/1.png", "b/2.png"])
    root = os.fsencode(tmp_path)
    for name in (b"a/caf\xe9.png", "a/\U0001f600.png".encode(), "b/été.png".encode()):
        os.link(root + b"/a/1.png", root + b"/" + name)
    source = open_source(f"folder:{tmp_path}", "train", None)
    # the order is that of the bytes, in every locale
    assert names_of(source) == [
        "a/1.png",
        "a/caf\ufffd.png",
        "a/\U0001f600.png",
        "b/2.png",
        "b/été.png",
    ]
    assert source.labels == (0, 0, 0, 1, 1) and source[1].data == source[0].data
    halves = [open_source(f"folder:{tmp_path}", s, None) for s in ("train[:2]", "train[2:]")]
    assert sorted(sum((h.files for h in halves), ())) == sorted(source.files)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    json.dumps(names_of(source)).encode("ascii"), "".join(names_of(source)).encode()


LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII file names": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_odd_locales_give_the_same_images_in_the_same_order(tmp_path, locale):
    write_images(tmp_path, ["a/été.png", "b/2.png"])
    os.link(tmp_path / "b/2.png", os.fsencode(tmp_path) + b"/b/caf\xe9.png")
    code = (
        "import sys; from mcl_jax.data.folder import open_folder; from mcl_jax.paths import shown\n"
        "source = open_folder(sys.argv[1], 'train[:2]'); source[0], source[1]\n"
        "print(ascii([r.name for r in source]), source.digest)\n"
        "from mcl_jax.data.left_out import tell_once; tell_once(source[0].name + shown(sys.argv[1]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=environment | LOCALES[locale], capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    here = open_source(f"folder:{tmp_path}", "train[:2]", None)
    assert done.stdout.strip() == f"{ascii(names_of(here))} {here.digest}"


def test_what_is_left_out_is_counted_and_named_once_by_kind(tmp_path, caplog):
    dataset = write_images(tmp_path, ["a/1.png", "a/2.PNG", "b/3.jpeg"])
    for stray in ("a/x.HEIC", "a/y.heic", "b/no_suffix", "b/._3.jpeg", "__MACOSX/a/._1.png"):
        (tmp_path / stray).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / stray).write_bytes(b"x")
    os.symlink("nowhere", tmp_path / "a" / "broken.jpg")
    os.symlink("loop.jpg", tmp_path / "a" / "loop.jpg")
    os.mkfifo(tmp_path / "b" / "pipe.jpg")
    (tmp_path / "c.jpg").mkdir()  # a folder, whatever it is called
    sources = [open_source(dataset, split, None) for split in ("train", "train[:2]", "train")]
    assert names_of(sources[0]) == ["a/1.png", "a/2.PNG", "b/3.jpeg"]
    (message,) = told(caplog)
    for part in (
        "2 x .heic file (the first is a/x.HEIC)",
        "1 x file without suffix (the first is b/no_suffix)",
        "2 x macOS resource fork (the first is __MACOSX)",
        "2 x broken link (the first is a/broken.jpg)",
        "1 x pipe, socket or device (the first is b/pipe.jpg)",
    ):
        assert part in message


SYSTEM = ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")
HIDDEN = (".ipynb_checkpoints", ".thumbnails", ".git", ".Trash-1000")


@pytest.mark.parametrize("kind, folders", [("system", SYSTEM), ("hidden", HIDDEN)])
def test_folders_that_a_system_made_hold_no_images_and_are_no_classes(
    tmp_path, caplog, kind, folders
):
    dataset = write_images(tmp_path, ["a/1.png", "b/2.png"])
    alone = open_source(dataset, "train", None)
    write_images(tmp_path, [f"{name}/a/1.png" for name in folders])
    write_images(tmp_path, [f"b/{folders[0]}/1.png"])
    source = open_source(dataset, "train", None)
    assert source.class_names == ("a", "b") and source.files == alone.files
    (message,) = told(caplog)
    assert f"left out {len(folders) + 1} x {kind} folder (the first is " in message


def test_the_signs_of_our_output_folders_are_the_names_that_are_written():
    written = {checkpoint_folders.FOLDER, lease.FOLDER, "config.json", *pictures.NAMES}
    written |= {report.RESULT_FILE, report.PICTURE_FILE, job.RESULT, job.PICTURE}
    assert set().union(*tree.OUTPUT_SIGNS) == written - {"montage.png"}
    assert {"montage.png", *tree.OUTPUT_SIGNS[-1]} == {*pictures.NAMES}


@pytest.mark.parametrize("signs", tree.OUTPUT_SIGNS, ids=lambda signs: "-".join(sorted(signs)))
def test_pictures_of_a_run_inside_the_folder_are_no_images(tmp_path, caplog, signs):
    dataset = write_images(tmp_path, ["a/1.png", "b/2.png"])
    alone = open_source(dataset, "train", None)
    write_images(tmp_path, ["run/montage.png", "run/curves.png"])
    *some, last = sorted(signs)
    for name in some:
        (tmp_path / "run" / name).write_text("{}")
    there = open_source(dataset, "train", None)
    assert {"run/montage.png", "run/curves.png"} <= {*there.files}  # a folder of the user's
    (tmp_path / "run" / last).mkdir()
    source = open_source(dataset, "train", None)
    assert source == alone and source.digest == alone.digest
    assert "left out 1 x output folder of mcl-jax (the first is run)" in told(caplog)[-1]


def test_a_run_inside_its_data_resumes_with_the_same_data(tmp_path, caplog, monkeypatch):
    toy_run.replace_network(monkeypatch.setattr, devices=1)
    rng = np.random.default_rng(0)
    for i in range(16):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, (32, 32, 3), np.uint8))
    config = mcl_jax.load_config("demo", **{**toy_run.SETTINGS, "data.split": "train"})
    config.data.dataset, config.data.batch_size = f"folder:{tmp_path}", 8
    config.optimizer.epochs = 2
    for stop_after in (2, None):
        state = train.pretrain(config, tmp_path / "run", stop_after=stop_after)
        write_images(tmp_path, ["run/montage.png"])
    assert int(state.step) == 4 and (tmp_path / "run/curves.png").is_file()
    assert not [line for line in told(caplog) if "changed since the checkpoint" in line]
    with pytest.raises(UserError, match="is the folder of the images"):
        train.pretrain(config, tmp_path)
    assert not (tmp_path / "owner").exists() and not (tmp_path / "xla_cache").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/1.png", "b/2.png", "preview.jpg"], r"1 of 3 images lie beside.*preview.jpg.*move"),
        (["images/a/1.png", "images/b/2.png"], r"one sub-folder, images.*give folder:\S+/images"),
    ],
)
def test_why_there_are_no_labels_and_what_to_give_is_said_once(tmp_path, caplog, names, words):
    dataset = write_images(tmp_path, names)
    sources = [open_source(dataset, "train", None) for _ in range(2)]
    (message,) = told(caplog)
    assert re.search(words, message) and len(message.splitlines()) == 1
    assert re.search(words, why_unlabeled(sources[0])) and sources[0].class_names is None
    if given := re.search(r"give (folder:\S+),?", message):
        assert why_unlabeled(open_source(given[1].rstrip(","), "train", None)) == ""


def test_flat_folders_are_not_worth_a_word(tmp_path, caplog):
    source = open_source(write_images(tmp_path, ["1.png", "2.png"]), "train", None)
    assert not caplog.records and "no sub-folders" in why_unlabeled(source)


def test_digest_changes_with_names_and_sizes_alone(tmp_path):
    dataset = write_images(tmp_path / "one", ["a/1.png", "b/2.png"])
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    before = data_digest(open_source(dataset, "train", None))
    assert (
        len(before) == 64
        and data_digest(open_source(f"folder:{tmp_path}/copy", "train", None)) == before
    )
    os.utime(tmp_path / "one/a/1.png", (1, 1))
    assert data_digest(open_source(dataset, "train", None)) == before
    with open(tmp_path / "one/a/1.png", "ab") as file:
        file.write(b"\0")
    grown = data_digest(open_source(dataset, "train", None))
    os.rename(tmp_path / "one/a/1.png", tmp_path / "one/a/3.png")
    renamed = data_digest(open_source(dataset, "train", None))
    assert len({before, grown, renamed}) == 3
