"""Fine-tuning of torchvision's detectors: flags, schedule, machine and results."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch_or_skip import need_torch, torch

from mcl_jax.errors import UserError
from mcl_jax.finetune import flags, job, machine, schedule, settings
from mcl_jax.finetune.settings import FinetuneSettings

SCRIPT = Path(__file__).parents[1] / "scripts/finetune_torchvision.py"
DATA_FLAGS = ["--train_json=a", "--train_images=b", "--test_json=c", "--test_images=d"]


def test_nothing_before_torchvision_imports_jax(tmp_path):
    """The environment of torchvision has neither JAX nor absl."""
    need_torch()
    code = (
        "import sys\n"
        "for name in ('jax', 'flax', 'absl', 'ml_collections', 'tensorflow_datasets', 'tqdm',\n"
        "             'etils', 'fsspec', 'orbax'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help', {str(tmp_path)!r}]\n"
        "from mcl_jax.finetune import images, pictures, precision\n"
        "from mcl_jax.runtime import lease\n"
        "with lease.hold(sys.argv.pop()): pass\n"
        f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--smallest_anchor" in done.stdout


def test_a_mistake_is_one_line_and_exit_code_2():
    command = [sys.executable, str(SCRIPT), "out", "--random", *DATA_FLAGS, "--labels=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --labels 0 must be at least 1\n")


def test_flags_become_a_job():
    given = ["out", "--weights=w", *DATA_FLAGS, "--min_sizes=96,160", "--labels=50", "--steps=9"]
    task = flags.parse("", given)
    assert task.settings == FinetuneSettings(min_sizes=(96, 160), labels=50, steps=9)
    assert (task.weights, task.threads, task.check) == (Path("w"), None, False)
    assert flags.parse("", ["out", "--random", *DATA_FLAGS]).weights is None
    assert json.loads(json.dumps(settings.as_json(task.settings)))["min_sizes"] == [96, 160]


@pytest.mark.parametrize(
    "given, words",
    [
        (["--detector=yolo"], "yolo is none of fasterrcnn, maskrcnn, retinanet"),
        (["--flip_prob=1.5"], "--flip_prob 1.5 must be from 0 to 1"),
        (["--base_lr=nan"], "--base_lr nan must be at least 0"),
        (["--min_sizes=900", "--max_size=800"], "--max_size 800 must be at least all"),
        (["--area_bounds=96,32"], "--area_bounds 96,32: give two rising numbers"),
        (["--detector=retinanet", "--fpn_channels=48"], "need a multiple of 32"),
        (["--log_steps=0"], "--log_steps 0 must be at least 1"),
        (["--min_sizes=x"], "invalid"),
        (["--learning_rate=1"], "unrecognized arguments: --learning_rate=1"),
        (["--weights=w"], "not allowed with argument"),
    ],
)
def test_wrong_flags_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        flags.parse("", ["out", "--random", *DATA_FLAGS, *given])


def test_the_learning_rate_rises_and_falls():
    own = FinetuneSettings(
        steps=90, batch_size=8, base_lr=0.02, warmup_steps=10, decay_at=(0.5, 0.9)
    )
    rates = [schedule.learning_rate(own, step) for step in range(90)]
    np.testing.assert_allclose(rates[0], 0.01 * 1e-3)
    np.testing.assert_allclose(rates[5], 0.01 * (0.5 * 1e-3 + 0.5))
    np.testing.assert_allclose(rates[10:45], 0.01)
    np.testing.assert_allclose(rates[45:81], 0.001)
    np.testing.assert_allclose(rates[81:], 0.0001)


def test_every_epoch_has_every_image_once():
    orders = [[schedule.image_at(0, 7, 7 * epoch + i) for i in range(7)] for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(7))] * 3
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != [schedule.image_at(1, 7, i) for i in range(7)]
    mirrored = [schedule.is_mirrored(FinetuneSettings(flip_prob=0.3), i) for i in range(1000)]
    assert 240 < sum(mirrored) < 360
    seeds = {schedule.torch_seed(s, p, n) for s in (0, 1) for p in schedule.Draw for n in (0, 1)}
    assert len(seeds) == 16


def test_weights_are_a_file_or_a_folder_with_one(tmp_path):
    with pytest.raises(UserError, match="holds 0 .pth files"):
        job.weights_file(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    assert job.weights_file(tmp_path) == job.weights_file(tmp_path / "a.pth") == tmp_path / "a.pth"
    (tmp_path / "b.pth").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 .pth files; name one"):
        job.weights_file(tmp_path)
    with pytest.raises(UserError, match="does not exist; mcl-jax convert RUN --to torchvision"):
        job.weights_file(tmp_path / "c")


def test_a_finished_result_belongs_to_its_identity(tmp_path):
    assert job.finished(tmp_path, {"steps": 1}) is None
    job.write_json(tmp_path / job.RESULT, {"identity": {"steps": 1}, "bbox": {}})
    assert job.finished(tmp_path, {"steps": 1})["bbox"] == {}
    assert job.finished(tmp_path, {"steps": 2}) is None


@pytest.mark.parametrize("missing", machine.PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_all(missing, monkeypatch):
    for name in machine.PACKAGES:  # whether or not they are here
        monkeypatch.setitem(sys.modules, name, None if name == missing else ModuleType(name))
    with pytest.raises(UserError, match=f"^{missing} cannot be imported .*: {machine.INSTALL}$"):
        machine.demand_libraries()


def test_devices_and_threads_are_chosen_and_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.device("auto").type == "cpu"
    with pytest.raises(UserError, match="--device cuda: torch .* finds 0 CUDA devices"):
        machine.device("cuda")
    with pytest.raises(UserError, match="--device tpu is none of"):
        machine.device("tpu")
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.set_threads(None).startswith("threads: 1 (OMP_NUM_THREADS)")
    assert machine.set_threads(2).startswith("threads: 2 (--threads)")
    with pytest.raises(UserError, match="--threads 0 must be at least 1"):
        machine.set_threads(0)
    torch.set_num_threads(before)
    assert machine.cores() >= 1
    assert machine.workers(None, torch.device("cpu")) == 0
    assert machine.workers(3, torch.device("cpu")) == 3
