"""Fine-tunes a detector in Detectron2 from exported weights, or runs one of the controls.

python scripts/finetune_detectron2.py configs/detectron2/coco_mask_rcnn_fpn_1x.yaml \\
    --weights exported/mcl_resnet50.pkl --num-gpus 8 OUTPUT_DIR runs/coco_1x

Detectron2 is installed by its own instructions (docs/transfer.md); this script needs no JAX. With
--check it looks at configuration, weights and, where Detectron2 is installed, at model and data.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 9):  # noqa: UP036  Detectron2's environments are not ours
    print(f"error: Python {sys.version.split()[0]} is too old, 3.9 is needed", file=sys.stderr)
    sys.exit(2)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Detectron2's environment lacks us


def main() -> None:
    from mcl_jax.errors import UserError

    try:
        try:
            from mcl_jax.convert.finetuning import command, task
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: pip install pyyaml numpy") from error
        command.run(task.parse(__doc__))
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
