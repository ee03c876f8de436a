"""The demo behind scripts/quickstart.sh: pre-train, resume, compare with untrained, convert."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
STEPS = 240  # of a user's own images; the built-in scenes follow configs/demo.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="your own images (default: built-in scenes)")
    parser.add_argument("--out", help="results go here (default: runs/quickstart[-FOLDER'S NAME])")
    options = parser.parse_args()
    if options.out and options.out.startswith("gs:"):
        sys.exit(f"error: --out {options.out}: the demo writes to disks alone")
    suffix = f"-{Path(options.folder).expanduser().resolve().name}" if options.folder else ""
    out = Path(options.out or REPO / "runs" / f"quickstart{suffix}").resolve()
    started = time.monotonic()
    overrides = own_images(options.folder) if options.folder else []
    train = [REPO / "scripts/pretrain.py", "--config", REPO / "configs/demo.py", "--workdir", out]
    say("1/4 pre-training, stopped on the way as a pre-empted machine would")
    run(*train, *overrides, "--stop_after=60")
    say("2/4 the same command resumes")
    run(*train, *overrides)
    say("3/4 converting to Detectron2")
    run("-m", "convert", out, "--to", "detectron2", "--out", out / "detectron2")
    say(f"4/4 result after {time.monotonic() - started:.0f} s")
    run(REPO / "scripts/summary.py", out)


def own_images(folder: str) -> list[str]:
    """Overrides that fit the demo to a folder: enough epochs for STEPS steps, a held-out tenth."""
    from mcl_jax import cli
    from mcl_jax.data.sources import open_source
    from mcl_jax.errors import UserError

    dataset = f"folder:{Path(folder).expanduser().resolve()}"
    try:
        count = len(open_source(dataset, "train[:90%]", data_dir=None))
        if count < 16:
            raise UserError(
                f"{folder} has too few images ({count} to train on); 18 or more, please"
            )
    except UserError as error:
        cli.fail(str(error))
    batch = 64 if count >= 64 else 16
    return [
        f"--config.data.dataset={dataset}",
        "--config.data.max_unreadable_share=0.1",
        "--config.data.split=train[:90%]",
        f"--config.data.batch_size={batch}",
        f"--config.optimizer.epochs={STEPS / max(1, count // batch)}",
        f"--config.optimizer.warmup_epochs={STEPS / 10 / max(1, count // batch)}",
        "--config.knn.bank_split=train[:90%]",
        "--config.knn.query_split=train[90%:]",
        f"--config.knn.every_epochs={STEPS / max(1, count // batch)}",
    ]


def run(*arguments: object) -> None:
    """Runs Python in the repository; a failure ends the demo with the same exit code."""
    code = subprocess.run([sys.executable, *map(str, arguments)], cwd=REPO, check=False).returncode
    if code:
        sys.exit(code)


def say(message: str) -> None:
    print(f"== {message}", flush=True)


if __name__ == "__main__":
    main()
