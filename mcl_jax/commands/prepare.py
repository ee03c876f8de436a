"""Prepare data sets in ArrayRecord form, without TensorFlow.

  mcl-jax prepare imagenet --data_dir DIR --train_tar ILSVRC2012_img_train.tar \\
      --val_tar ILSVRC2012_img_val.tar --val_labels ILSVRC2012_devkit_t12.tar.gz
  mcl-jax prepare coco --data_dir DIR \\
      --annotations_zip annotations_trainval2017.zip \\
      --train_zip train2017.zip --val_zip val2017.zip --unlabeled_zip unlabeled2017.zip
  mcl-jax prepare folder --data_dir DIR --folder IMAGES --name my_images
  mcl-jax prepare tfrecord --data_dir DIR --input OLD/imagenet2012/5.1.0

A second run skips what is finished and restarts what was interrupted.
"""

import argparse
from importlib import import_module

from mcl_jax import cli, paths, whole_file

COMPILES = False


def parser(program: str) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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

    coco = kinds.add_parser("coco", help="the COCO 2017 zips")
    for option in ("--train_zip", "--val_zip", "--unlabeled_zip"):
        coco.add_argument(option)
    coco.add_argument("--annotations_zip", required=True, help="annotations_trainval2017.zip")
    coco.add_argument("--partial", action="store_true", help=partial_help)

    folder = kinds.add_parser("folder", help="a tree of images")
    folder.add_argument("--folder", required=True)
    folder.add_argument("--name", required=True, help="name of the data set")
    folder.add_argument("--holdout_percent", type=int, default=0, help="share of split validation")

    tfrecord = kinds.add_parser("tfrecord", help="a TFDS data set in TFRecord form")
    tfrecord.add_argument("--input", required=True, dest="input_dir", help="NAME/[CONFIG/]VERSION")
    for kind in (imagenet, coco, folder, tfrecord):
        kind.add_argument("--data_dir", required=True, help="TFDS directory to write to")
    return parser


def main(options: argparse.Namespace) -> None:
    arguments = vars(options)
    kind = arguments.pop("kind")
    for name, value in arguments.items():
        if isinstance(value, str) and name != "name":
            paths.on_disk(value, "--input" if name == "input_dir" else f"--{name}")
    module = import_module(f"mcl_jax.data.prepare.{kind}")
    with whole_file.saving(arguments["data_dir"]):
        print(getattr(module, f"prepare_{kind}")(**arguments))
