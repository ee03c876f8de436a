"""What may lie in a workdir under the names that a run uses."""

import os

import pytest

from mcl_jax import train
from mcl_jax.configs import base
from mcl_jax.errors import UserError
from mcl_jax.runtime import checkpoint, lease, own_names


def listing(folder):
    return sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", [*own_names.FOLDERS, *own_names.FILES])
def test_what_has_a_name_of_a_run_in_a_workdir_is_of_its_kind(tmp_path, name):
    """Else a run would train to its end before it finds out."""
    config = base.get_config()
    place = tmp_path / "place"
    (place / "folder").mkdir(parents=True)
    (place / "file").touch()
    (place / "broken").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "pipe")
    kinds = ["file" if name in own_names.FOLDERS else "folder", "broken", "loop", "pipe"]
    for kind in kinds:
        workdir = place / f"run-{kind}"
        workdir.mkdir()
        os.symlink(place / kind, workdir / name)
        before = listing(place)
        for refuse in (
            train.check_workdir,
            lambda path: train.pretrain(config, path),
            lambda path: checkpoint.write(path, None, {}),
            lambda path: lease._take(path),
        ):
            with pytest.raises(UserError) as caught:
                refuse(workdir)
            message = str(caught.value)
            assert message.startswith(f"the run's own '{workdir / name}' is ")
        assert listing(place) == before
    assert kind == "pipe" and "a run needs this name for itself: move it away" in message
