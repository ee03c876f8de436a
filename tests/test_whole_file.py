"""A disk that takes no more: one line, exit code 5, and no half of a file, whatever was written."""

import contextlib
import errno
import os
import resource

import command_line
import numpy as np
import pytest
from test_results import LANDS, place  # noqa: F401  every result that a command writes
from torch_or_skip import need_torch

from mcl_jax import cli, exit_codes, whole_file
from mcl_jax.convert.files import folder, formats
from mcl_jax.errors import CannotSave, UserError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
PROMISE = "Make room, then run the same command again"


@contextlib.contextmanager
def full(size):
    """Inside, no file gets longer than `size` bytes."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def listing(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("command", "flag"), LANDS)
def test_a_result_is_written_whole_or_not_at_all(place, capsys, command, flag):  # noqa: F811
    rest, _ = LANDS[command, flag]
    if command == "instance-sizes":
        rest = (f"--dataset=folder:{place / 'images'}", "--split=train")
    before = listing(place)
    name = "x" + {"output": ".png", "document": ".md"}.get(flag, "")
    with full(1):
        code = command_line.run(*command.split(), *rest, f"--{flag}={name}")
    said = capsys.readouterr().err.splitlines()
    assert code == exit_codes.CANNOT_SAVE and len(said) == 1, said
    assert said[0].startswith("error: ") and name in said[0] and said[0].endswith(PROMISE)
    assert "File too large" in said[0] and listing(place) == before


@pytest.mark.parametrize("size", [0, 100, 600])
@pytest.mark.parametrize("kind", [".pkl", ".pth", "meta", ".safetensors"])
def test_an_export_is_there_as_a_whole_or_not_at_all(tmp_path, kind, size):
    if kind in (".pth", "meta"):
        need_torch()
    arrays = {"w": np.arange(1000, dtype=np.float32)}
    write = {
        ".pkl": formats.write_pickle, ".pth": formats.write_torch, "meta": formats.write_torch_with_meta,
        ".safetensors": formats.write_safetensors,
    }[kind]  # fmt: skip
    with full(size), pytest.raises(CannotSave, match=f"out cannot be written: File.*{PROMISE}"):
        folder.write(tmp_path / "out", lambda there: write(there / "weights", arrays, {"a": "b"}))
    assert not list(tmp_path.iterdir())
    folder.write(tmp_path / "out", lambda there: write(there / "weights", arrays, {"a": "b"}))
    assert (tmp_path / "out/weights").stat().st_size > 4000


@pytest.mark.parametrize("size", [0, 100, 400, 2000])
def test_a_data_set_is_prepared_as_a_whole_or_not_at_all(place, capsys, size):  # noqa: F811
    line = ("prepare", "folder", "--folder=images", "--name=mine", "--data_dir=new")
    before = listing(place)
    for _ in range(9):
        (place / "images" / f"{_ + 2}.bmp").write_bytes((place / "images/1.png").read_bytes())
    before = listing(place)
    with full(size):
        code = command_line.run(*line)
    said = capsys.readouterr().err.splitlines()
    assert code == exit_codes.CANNOT_SAVE, said
    assert [x for x in said if x.startswith("error:")] == [said[-1]] and "new" in said[-1], said
    assert listing(place) == before
    assert command_line.run(*line) == 0


def test_what_is_already_there_stays(tmp_path):
    path = tmp_path / "x"
    whole_file.write(path, "before")
    for content in ("x" * 9, b"y" * 9, lambda file: file.write(b"z" * 9)):
        with full(7), pytest.raises(OSError, match="x'") as caught:
            whole_file.write(path, content)
        assert caught.value.filename == str(path)
    assert path.read_text() == "before" and listing(tmp_path) == [path]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"),
    OSError(errno.EROFS, "Read-only file system", "/a/b"),
    OSError(errno.EIO, "Input/output error", "/a/b"),
    RuntimeError("write() failed: No space left on device; writing /a/b"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_that_nobody_foresaw_is_one_line(error, capsys):
    def work():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.guarded(work)
    said = capsys.readouterr().err
    assert end.value.code == exit_codes.CANNOT_SAVE and said.count("\n") == 1
    assert said.startswith("error: ")
    assert "/a/b" in said or getattr(error, "filename", 0) is None
    with pytest.raises(CannotSave, match="place cannot be written"), whole_file.saving("place"):
        work()


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no", "x"), KeyError("x"), UserError(os.strerror(28))]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, whole_file.saving("place"):
        raise error
    assert caught.value is error and whole_file.mistake(error) is None
