"""Fine-tunes a torchvision detector on images of your own and measures its AP.

python scripts/finetune_torchvision.py runs/detector --weights exported \\
    --train_json train.json --train_images train --test_json test.json --test_images test

Needs torch, torchvision, pycocotools, OpenCV and simplejpeg, and neither JAX nor this project
installed. The same command goes on where it was stopped; the folder then holds result.json,
detections.json and test_images.png. Runs to compare differ in --weights alone: --random, a
supervised .pth, ours.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # torchvision's environment lacks us

from mcl_jax import exit_codes  # noqa: E402
from mcl_jax.convert.files import weights  # noqa: E402
from mcl_jax.errors import UserError  # noqa: E402
from mcl_jax.finetune import flags, job, machine  # noqa: E402


def read_weights(path: Path, network: str | None) -> tuple[dict, list[str]]:
    """Arrays by torchvision's names, from any format and from behind any prefix."""
    content = weights.read(path, "torchvision", network)
    return content.arrays, content.notes


def main() -> None:
    try:
        task = flags.parse(__doc__)
        machine.demand_libraries()
        from mcl_jax.finetune import run

        result = run.run(task, read_weights, say=lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    if result is None and not task.check:
        sys.exit(exit_codes.STOPPED)
    for key, words in (("scores", "boxes"), ("mask_scores", "masks")):
        if result and key in result:
            print(
                f"{words}, in percent:\n{job.as_text(result[key], result['data']['class_names'])}"
            )


if __name__ == "__main__":
    main()
