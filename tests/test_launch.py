"""Launch files: linted, and what they start is what scripts/pretrain.py understands."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parent.parent
LAUNCH = REPO / "scripts/launch"
SHELL = ["scripts/launch/tpu_vm.sh", "scripts/launch/slurm.sbatch"]
SHELL += ["scripts/quickstart.sh", "scripts/test.sh", "scripts/environment.sh", ".ci/run"]


@pytest.mark.parametrize("script", SHELL)
def test_shell_scripts_pass_shellcheck(script):
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [linter, "--shell=bash", "--exclude=SC1091,SC2154", REPO / script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def understood(arguments):
    """Whether scripts/pretrain.py takes these arguments; the config is loaded for it."""
    assert arguments[0].endswith("python") and arguments[1] == "scripts/pretrain.py", arguments
    done = subprocess.run(
        [sys.executable, *arguments[1:], "--only_check_args"],
        cwd=REPO,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--distributed" in arguments


def tpu_vm(step, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / "tpu_vm.sh"), step],
        env=os.environ | {"DRY_RUN": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tpu_vm_prints_what_it_would_do_and_starts_a_run_that_parses():
    created = shlex.split(tpu_vm("create").stdout)
    assert created[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "mcl"]
    missing = tpu_vm("setup", REPO="https://host/mcl_jax")
    assert missing.returncode != 0 and "BUCKET=NAME is missing" in missing.stderr
    assert tpu_vm("setup", REPO="url", BUCKET="data").returncode == 0
    wrong = tpu_vm("start")
    assert wrong.returncode == 2 and "'start' is not one of create" in wrong.stderr
    started = shlex.split(tpu_vm("run", BUCKET="data", FLAGS="--config.seed=3").stdout)
    command = next(x for x in started if x.startswith("--command=")).partition("=")[2]
    words = shlex.split(command.partition("nohup ")[2].partition(" <")[0])
    assert "gs://data/runs/r50" in words
    understood(words)
    assert words[-1] == "--config.seed=3"


def test_the_slurm_job_starts_one_process_per_gpu_that_parses(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\n')
    srun.chmod(0o755)
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch")],
        cwd=REPO,
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "/shared/r50", "DATA": "/data"},
        capture_output=True,
        text=True,
        check=True,
    )
    options, _, command = done.stdout.partition(" .venv/")
    assert options == "--kill-on-bad-exit=1"
    understood(shlex.split(command.replace("bin/python", "python", 1)))
    headers = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --gpus-per-node=8" in headers and "#SBATCH --signal=TERM@120" in headers


def test_the_gke_manifest_fills_its_slice_and_starts_a_run_that_parses():
    manifest = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"] * job["completions"]
    assert chips == int(rows) * int(columns) and job["parallelism"] == job["completions"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    understood(container["command"])
