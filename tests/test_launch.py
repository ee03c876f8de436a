"""Launch files: linted, and what they start is what mcl-jax pretrain understands."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mcl_jax import exit_codes

REPO = Path(__file__).resolve().parent.parent
LAUNCH = REPO / "scripts/launch"
SHELL = [*(REPO / "scripts").rglob("*.sh"), LAUNCH / "slurm.sbatch", REPO / ".ci/run"]
HOOKS = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(script):
    """As the hook runs it at every commit."""
    (hook,) = (hook for hook in HOOKS if hook["id"] == "shellcheck")
    linter, *flags = hook["entry"].split()
    done = subprocess.run(
        [Path(sys.executable).with_name(linter), *flags, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def understood(arguments):
    """Whether mcl-jax pretrain takes these arguments; the config is loaded for it."""
    assert arguments[0].endswith("mcl-jax") and arguments[1] == "pretrain", arguments
    done = subprocess.run(
        [sys.executable, "-m", "mcl_jax", *arguments[1:], "--only_check_args"],
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


@pytest.fixture
def slurm(tmp_path):
    """A function that runs the batch script; srun ends with a code, scontrol tells what it got."""

    def run(code):
        for name, then in (("srun", f"exit {code}"), ("scontrol", "")):
            path = tmp_path / name
            path.write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@"\necho\n{then}\n')
            path.chmod(0o755)
        own = {"WORKDIR": "/shared/r50", "DATA": "/data", "SLURM_JOB_ID": "17"}
        return subprocess.run(
            ["bash", str(LAUNCH / "slurm.sbatch")],
            cwd=REPO,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | own,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_slurm_job_starts_one_process_per_gpu_that_parses(slurm):
    options, _, command = slurm(0).stdout.strip().partition(" .venv/")
    assert options == "srun --kill-on-bad-exit=1"
    understood(shlex.split(command))
    headers = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --gpus-per-node=8" in headers and "#SBATCH --signal=TERM@120" in headers
    assert "#SBATCH --requeue" in headers


@pytest.mark.parametrize("code", exit_codes.MEANINGS)
def test_the_slurm_job_is_queued_again_where_that_helps(slurm, code):
    done = slurm(code)
    again = code in (exit_codes.LOST_HOST, exit_codes.STOPPED)
    assert ("scontrol requeue 17" in done.stdout) == again
    assert done.returncode == (0 if again else code)


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
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    killed = [128 + signal.SIGKILL, 128 + signal.SIGTERM]
    assert rule["onExitCodes"]["operator"] == "NotIn" and rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [exit_codes.LOST_HOST, exit_codes.STOPPED, *killed]
    (action,) = manifest["spec"]["failurePolicy"]["rules"]
    assert action == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
