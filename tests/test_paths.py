"""The door for paths: what can be used passes as it is, the rest is one line; nothing is written."""

import contextlib
import os
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mcl_jax import path_flags, paths, train
from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.report import card

ROOT = Path(__file__).parents[1]
DOORS = (paths.existing_file, paths.existing_folder, paths.output_file, paths.output_folder)


@contextlib.contextmanager
def ordinary_user():
    """Inside, file modes count; root may do anything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place(tmp_path_factory, monkeypatch):
    """A folder that every user may look into, with one of each kind in it; the current folder too."""
    place = tmp_path_factory.mktemp("place")
    for folder in (place, *place.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)  # pytest's own folders are closed to others
    (place / "file").write_bytes(b"x")
    (place / "folder").mkdir()
    (place / "link").symlink_to("folder")
    (place / "broken").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "has space").mkdir()
    os.mkfifo(place / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(place / "socket"))
    monkeypatch.chdir(place)
    return place


def listing(folder):
    return sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def refused(door, path, name="--flag"):
    with pytest.raises(UserError) as caught:
        door(path, name)
    message = str(caught.value)
    assert name in message and len(message.splitlines()) == 1
    message.encode("utf-8")  # can be written anywhere
    return message


USED = [
    (paths.existing_file, "file"),
    (paths.existing_folder, "folder"),
    (paths.existing_folder, "link"),
    (paths.existing_folder, "has space"),
    (paths.existing_folder, "."),
    (paths.output_folder, "folder"),
    (paths.output_folder, "folder/new/newer"),
    (paths.output_folder, "link/new"),
    (paths.output_folder, "../new"),
    (paths.output_file, "file"),
    (paths.output_file, "link/new.json"),
    (paths.output_file, "has space/é\u2028.json"),
    *((door, "gs://bucket/run//x") for door in DOORS),
]


@pytest.mark.parametrize(("door", "path"), USED)
def test_what_can_be_used_passes_unchanged(place, door, path):
    before = listing(place)
    assert door(path, "--flag") == path
    if not path.startswith("gs://"):
        assert door(place / path, "--flag") == str(place / path)
    assert listing(place) == before


REFUSED = [
    (paths.existing_file, "nowhere", "does not exist"),
    (paths.existing_file, "folder", "is a folder, not a file"),
    (paths.existing_file, "pipe", "is no file that can be read twice"),
    (paths.existing_file, "broken", "is a link to 'nowhere', which does not exist"),
    (paths.existing_file, "loop", "is a link to 'loop', which cannot be followed"),
    (paths.existing_file, "file/inner", "a part of it is a file"),
    (paths.existing_folder, "file", "is a file, not a folder"),
    (paths.existing_folder, "broken", "is a link to 'nowhere', which does not exist"),
    (paths.existing_folder, "loop/inner", "cannot be used"),
    (paths.output_folder, "file", "is a file; give a folder"),
    (paths.output_folder, "pipe", "is a file; give a folder"),
    (paths.output_folder, "file/sub", "cannot be made: .*file' is a file"),
    (paths.output_folder, "broken", "is a link to 'nowhere', which does not exist"),
    (paths.output_folder, "broken/sub", "is a link to 'nowhere', which does not exist"),
    (paths.output_folder, "loop/sub", "cannot be used: Too many"),
    (paths.output_file, "folder", "is a folder; give a file"),
    (paths.output_file, "link", "is a folder; give a file"),
    (paths.output_file, "new/", "is a folder; give a file|there is no folder"),
    (paths.output_file, "nowhere/x.json", "there is no folder .*nowhere"),
    (paths.output_file, "file/x.json", "is a file"),
    (paths.output_file, "broken", "is a link to 'nowhere', which does not exist"),
    *((door, "", "is empty") for door in DOORS),
    *((door, "  ", "is empty") for door in DOORS),
    *((door, "a\0b", "zero byte") for door in DOORS),
    *((door, os.fsdecode(b"caf\xe9"), "no UTF-8") for door in DOORS),
    *((door, "s3://bucket/x", "is a URL; give a path or gs://BUCKET/NAME") for door in DOORS),
    *((door, "x" * 300, "File name too long") for door in DOORS),
    *((door, "~nobody_of_this_name/x", "no such home folder") for door in DOORS),
]


@pytest.mark.parametrize(("door", "path", "words"), REFUSED)
def test_what_cannot_be_used_is_one_line(place, door, path, words):
    before = listing(place)
    message = refused(door, path)
    assert re.search(words, message), message
    assert listing(place) == before


def test_home_is_expanded_and_missed_only_where_it_is_asked_for(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert paths.existing_folder("~/folder", "x") == str(place / "folder")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987654)  # no entry in passwd
    assert paths.existing_folder("folder", "x") == "folder"
    for door in DOORS:
        assert "no such home folder" in refused(door, "~/folder")


def test_read_only_places_and_what_may_not_be_read(place):
    for name, mode in (("sealed", 0o555), ("secret", 0o700)):
        (place / name).mkdir()
        (place / name / "inner").mkdir()
        (place / name).chmod(mode)
    (place / "mine").write_bytes(b"x")
    (place / "mine").chmod(0o600)
    with ordinary_user():
        if os.geteuid() == (place / "mine").stat().st_uid:
            pytest.skip("needs root, who can become another user")
        for door in (paths.output_folder, paths.output_file):
            assert "Permission denied" in refused(door, "sealed/new")
        assert paths.existing_folder("sealed", "x") == "sealed"
        assert "may not be read by this user" in refused(paths.existing_folder, "secret")
        assert "Permission denied" in refused(paths.existing_folder, "secret/inner")
        assert "may not be read by this user" in refused(paths.existing_file, "mine")
        assert "Permission denied" in refused(paths.output_folder, "secret/inner/new")


def test_no_place_for_temporary_files_is_needed(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert paths.output_folder("new", "x") == "new"


def test_names_are_shown_and_opened_whatever_their_bytes(place):
    odd = os.fsdecode(b"caf\xe9.jpg")
    (place / odd).write_bytes(b"1")
    assert paths.shown(odd) == "caf\ufffd.jpg" and paths.native(odd) == odd
    assert paths.shown("été") == paths.native("été") == "été"
    for half in ("\ud800", "a\udfff"):
        paths.shown(half).encode("utf-8")
        assert not os.path.exists(paths.native(half))


PARTS = [
    *("file", "folder", "link", "broken", "loop", "pipe", "socket", "has space", "..", ".", ""),
    *(
        "new",
        "é",
        "\u202e",
        "\n",
        "\t",
        "~",
        "~root",
        "~nobody_",
        "$HOME",
        "*",
        "-",
        "--x",
        "\\",
        "'",
    ),
    *("\0", "x" * 256, "\udce9", "\ud800", "gs:", "s3:", "file:", "\U0001f600", "a" * 50),
]


def test_five_hundred_random_paths_pass_or_are_one_line(place):
    before = listing(place)
    counts = {"passed": 0, "refused": 0}
    rng = random.Random(0)
    for _ in range(500):
        text = "/".join(rng.choice(PARTS) for _ in range(rng.randint(1, 4)))
        door = rng.choice(DOORS)
        try:
            door(text, "--flag")
            counts["passed"] += 1
        except UserError as error:
            message = str(error)
            message.encode("utf-8")
            assert message.startswith("--flag ") and len(message.splitlines()) == 1, message
            counts["refused"] += 1
    assert listing(place) == before
    print(dict(counts))
    assert counts["passed"] > 50 and counts["refused"] > 200, counts


def test_open_files_do_not_leak(place):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    there = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        paths.output_folder("folder/new", "x")
    assert len(os.listdir("/proc/self/fd")) == there < limit


def outcome(script, *arguments):
    """(exit code, lines of stderr) of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr.strip().splitlines()


COMMANDS = [
    ("pretrain.py", "--config", ROOT / "configs/demo.py", "--workdir", os.fsdecode(b"caf\xe9")),
    ("knn.py", "--workdir", "nowhere", "--json", "nowhere/x.json"),
    ("linear_svm.py", "--workdir", "x", "--train_json", "folder"),
    ("linear_eval.py", "--workdir", "x", "--output", "file"),
    ("prepare_data.py", "folder", "--folder", "file", "--name", "x", "--data_dir", "new"),
    ("coco_subset.py", "folder"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_refuse_paths_in_one_line_and_write_nothing(place, command):
    before = listing(place)
    code, lines = outcome(*command)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert listing(place) == before


def test_workdirs_that_cannot_be_written_are_refused_before_training(place):
    config = base.get_config()
    before = listing(place)
    for path, words in (("file/sub", "file' is a file"), ("broken", "does not exist")):
        for refuse in (train.check_workdir, lambda path: train.pretrain(config, path)):
            with pytest.raises(UserError, match=f"workdir '{path}' .*{words}"):
                refuse(path)
    assert listing(place) == before


def test_every_path_flag_of_the_commands_has_a_door():
    """A new string flag is put into DOORS, or here."""
    others = {
        *("dataset", "split", "train_split", "test_split", "bank_split", "query_split", "schedule"),
        *("topology", "coordinator", "study", "control", "profile", "cache"),
    }
    texts = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "mcl_jax/commands").glob("*.py")]
    found = {
        name
        for path in texts
        for name in re.findall(r"DEFINE_string\(\s*f?\"([\w{}]+)\"", path.read_text("utf-8"))
    }
    assert {"json", "workdir", "output"} <= found
    assert found - {"{part}_{kind}"} <= others | set(path_flags.DOORS)


def test_any_name_can_be_printed_and_put_on_a_page():
    """Where output is ASCII alone, letters are escaped; a page is UTF-8 whatever the names are."""
    code = (
        "import os, sys; from mcl_jax import cli\n"
        "with cli.mistakes_in_one_line():\n"
        "    print(os.fsdecode(b'caf\\xe9'), '\\u00e9')\n"
        "    raise cli.UserError(os.fsdecode(b'caf\\xe9') + ' \\u00e9')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stdout.count(b"\\") == 2 and done.stderr.startswith(b"error: caf\\udce9 \\xe9")
    page = card.page(os.fsdecode(b"caf\xe9"), "\udce9", ["<p>été</p>"])
    assert "caf\ufffd" in page and "été" in page and page.encode("utf-8")
