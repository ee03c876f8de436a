"""COCO 2017's zips -> `tfds:coco/2017` in ArrayRecord form, with the unlabeled images as a
split."""

import functools
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcl_jax import paths
from mcl_jax.data import coco_json, left_out, text
from mcl_jax.data.left_out import Tally, system_file
from mcl_jax.data.prepare.archives import base_name, open_zip, zip_images
from mcl_jax.data.prepare.jobs import (
    Examples,
    JobBuilder,
    SplitJob,
    hash_of,
    usage,
    write_splits,
)
from mcl_jax.errors import UserError

EXPECTED = {"train": 118_287, "validation": 5_000, "unlabeled": 123_403}
_ANNOTATIONS = {"train": "instances_train2017.json", "validation": "instances_val2017.json"}


class Coco(JobBuilder, skip_registration=True):
    """COCO 2017 images with boxes and classes; the unlabeled split has none."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017", description="COCO of 2017.")]

    def __init__(self, *, categories: list[str], jobs: list[SplitJob], data_dir: str):
        """categories: class names in label order; jobs: the splits."""
        self._categories = categories
        super().__init__(jobs=jobs, data_dir=data_dir, config="2017")

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self._categories),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=__doc__, features=tfds.features.FeaturesDict(features)
        )


def prepare_coco(
    *,
    train_zip: str | None,
    val_zip: str | None,
    unlabeled_zip: str | None,
    annotations_zip: str,
    data_dir: str,
    partial: bool,
) -> str:
    """Write the splits train, validation and unlabeled whose zips are given; finished ones are
    skipped.

    Args:
      train_zip, val_zip, unlabeled_zip: train2017.zip, val2017.zip, unlabeled2017.zip.
      annotations_zip: annotations_trainval2017.zip; also names the classes of the unlabeled split's
        (empty) objects, so that all splits have the same features.
      data_dir: TFDS directory to write to; free space for the size of the zips is needed.
      partial: accept other counts than 118,287, 5,000 and 123,403.

    Returns:
      The flags to use the data set with.

    Raises:
      UserError: missing or damaged input, or a wrong count.
    """
    zips = {"train": train_zip, "validation": val_zip, "unlabeled": unlabeled_zip}
    zips = {split: path for split, path in zips.items() if path is not None}
    if not zips:
        raise UserError("give at least one of --train_zip, --val_zip, --unlabeled_zip")
    zips = {split: paths.existing_file(path, f"zip of {split}") for split, path in zips.items()}
    annotations_zip = paths.existing_file(annotations_zip, "--annotations_zip")
    data_dir = paths.output_folder(data_dir, "--data_dir")
    categories = _categories(annotations_zip)
    jobs = [
        SplitJob(
            split,
            functools.partial(_examples, path, annotations_zip, split),
            input_bytes=os.path.getsize(path),
            expected=EXPECTED[split],
        )
        for split, path in zips.items()
    ]
    builder = Coco(categories=categories, jobs=jobs, data_dir=data_dir)
    counts = write_splits(builder, partial=partial)
    return usage("coco/2017", data_dir, sorted(counts))


def _read_instances(annotations_zip: str, file_name: str) -> Any:
    """What the annotation file of that name in the zip holds; None if it is not there."""
    with open_zip(annotations_zip) as archive:
        for name in archive.namelist():
            if os.path.basename(name) == file_name and not system_file(name):
                data, name = archive.read(name), f"{annotations_zip}/{name}"
                expected = "give COCO's annotations_trainval2017.zip"
                return text.parsed(text.decoded(data, name, expected), name, expected)
    return None


def _categories(annotations_zip: str) -> list[str]:
    """Class names in order of their category ids."""
    for file_name in reversed(_ANNOTATIONS.values()):  # The validation file is the small one.
        instances = _read_instances(annotations_zip, file_name)
        if instances is not None:
            return list(coco_json.class_names(instances, f"{annotations_zip}/{file_name}"))
    raise UserError(f"{annotations_zip!r} holds none of {', '.join(_ANNOTATIONS.values())}")


def _examples(path: str, annotations_zip: str, split: str) -> Examples:
    objects = _objects(annotations_zip, split)
    others, unlisted = Tally(), Tally()
    with open_zip(path) as archive:
        # In hashed order, so that slices of a small data set are random subsets too.
        for name in sorted(zip_images(archive, others), key=hash_of):
            file_name = base_name(name)
            if objects and file_name not in objects:
                unlisted.add("image that the annotations do not list: it has no boxes", name)
            yield (
                file_name,
                {
                    "image": archive.read(name),
                    "image/filename": file_name,
                    "objects": objects.get(file_name, []),
                },
            )
    left_out.tell(path, others.kinds)
    if unlisted.kinds:
        left_out.tell_once(f"{path}: {unlisted.sentence()}")


def _objects(annotations_zip: str, split: str) -> dict[str, list[dict]]:
    """File name -> objects with relative boxes; {} for the unlabeled split."""
    if split not in _ANNOTATIONS:
        return {}
    file_name = _ANNOTATIONS[split]
    content = _read_instances(annotations_zip, file_name)
    if content is None:
        raise UserError(f"{annotations_zip!r} lacks {file_name}, needed for {split}")
    name = f"{annotations_zip}/{file_name}"
    instances = coco_json.parse(content, name)
    coco_json.warn(instances, name)
    return {
        base_name(image.file_name): [
            {
                "bbox": _relative_box(annotation.box, image.height, image.width),
                "label": instances.class_names[annotation.label],
                "is_crowd": annotation.crowd,
            }
            for annotation in instances.of(image)
        ]
        for image in instances.images
    }


def _relative_box(box: coco_json.XYWH, height: int, width: int) -> tfds.features.BBox:
    """COCO's (x, y, width, height) in px -> (ymin, xmin, ymax, xmax) in 0..1."""
    x, y, box_width, box_height = box
    corners = (y / height, x / width, (y + box_height) / height, (x + box_width) / width)
    return tfds.features.BBox(*(min(max(corner, 0.0), 1.0) for corner in corners))
