"""Prepare data sets in ArrayRecord form, without TensorFlow.

  python scripts/prepare_data.py imagenet --data_dir DIR --train_tar ILSVRC2012_img_train.tar \\
      --val_tar ILSVRC2012_img_val.tar --val_labels ILSVRC2012_devkit_t12.tar.gz
  python scripts/prepare_data.py coco --data_dir DIR \\
      --annotations_zip annotations_trainval2017.zip \\
      --train_zip train2017.zip --val_zip val2017.zip --unlabeled_zip unlabeled2017.zip
  python scripts/prepare_data.py folder --data_dir DIR --folder IMAGES --name my_images
  python scripts/prepare_data.py tfrecord --data_dir DIR --input OLD/imagenet2012/5.1.0

A second run skips what is finished and restarts what was interrupted.
"""

import argparse
import sys

from mcl_jax.data.prepare.coco import prepare_coco
from mcl_jax.data.prepare.folder import prepare_folder
from mcl_jax.data.prepare.imagenet import prepare_imagenet
from mcl_jax.data.prepare.tfrecord import prepare_tfrecord
from mcl_jax.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    partial_help = "accept another number of images than the published one"

    imagenet = kinds.add_parser("imagenet", help="the ILSVRC2012 tars")
    imagenet.add_argument("--train_tar", help="ILSVRC2012_img_train.tar")
    imagenet.add_argument("--val_tar", help="ILSVRC2012_img_val.tar")
    imagenet.add_argument(
        "--val_labels", help="devkit tar.gz, its ground truth, or a file of synsets (or names too)"
    )
    imagenet.add_argument("--meta", help="meta.mat or 'id synset' lines, for numeric --val_labels")
    imagenet.add_argument("--partial", action="store_true", help=partial_help)
    imagenet.set_defaults(prepare=prepare_imagenet)

    coco = kinds.add_parser("coco", help="the COCO 2017 zips")
    for option in ("--train_zip", "--val_zip", "--unlabeled_zip"):
        coco.add_argument(option)
    coco.add_argument("--annotations_zip", required=True, help="annotations_trainval2017.zip")
    coco.add_argument("--partial", action="store_true", help=partial_help)
    coco.set_defaults(prepare=prepare_coco)

    folder = kinds.add_parser("folder", help="a tree of images")
    folder.add_argument("--folder", required=True)
    folder.add_argument("--name", required=True, help="name of the data set")
    folder.add_argument("--holdout_percent", type=int, default=0, help="share of split validation")
    folder.set_defaults(prepare=prepare_folder)

    tfrecord = kinds.add_parser("tfrecord", help="a TFDS data set in TFRecord form")
    tfrecord.add_argument("--input", required=True, dest="input_dir", help="NAME/[CONFIG/]VERSION")
    tfrecord.set_defaults(prepare=prepare_tfrecord)
    for kind in (imagenet, coco, folder, tfrecord):
        kind.add_argument("--data_dir", required=True, help="TFDS directory to write to")
    return parser


def main() -> int:
    arguments = vars(_parser().parse_args())
    arguments.pop("kind")
    prepare = arguments.pop("prepare")
    try:
        print(prepare(**arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
