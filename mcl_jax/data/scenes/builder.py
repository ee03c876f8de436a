"""`scenes`: the built-in data set, rendered here, a TFDS builder that prepares itself offline.

4,096 training and 1,024 validation images of textured objects on cluttered ground, with boxes,
classes and a dominant label. Every image depends on its split and index alone.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mcl_jax import paths
from mcl_jax.data.scenes.render import CLASS_NAMES, Scene, render_scene
from mcl_jax.errors import UserError

SPLIT_SIZES = {"train": 4096, "validation": 1024}
_LONGER_SIDE = 128
_JPEG_QUALITY = 92
# Seeds of the splits: image i of a split is drawn from (seed, i), so splits never share a scene.
_SPLIT_SEEDS = {"train": 1, "validation": 2}


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Textured objects of eight classes; color says nothing about the class, the ground something."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    # Split sizes in images; a smaller set can be built for tests.
    split_sizes = SPLIT_SIZES

    def _info(self) -> tfds.core.DatasetInfo:
        class_label = tfds.features.ClassLabel(names=list(CLASS_NAMES))
        objects = {"bbox": tfds.features.BBoxFeature(), "label": class_label}
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": class_label,
                    "objects": tfds.features.Sequence(objects),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # Nothing to download.
        return {split: self._generate_examples(split) for split in self.split_sizes}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(self.split_sizes[split]):
            yield index, scene_example(split, index)


def scene(split: str, index: int) -> Scene:
    """Scene `index` of `split`, as rendered before encoding."""
    return render_scene(np.random.default_rng((_SPLIT_SEEDS[split], index)), _LONGER_SIDE)


def scene_example(split: str, index: int) -> dict:
    """The TFDS example of a scene: JPEG bytes, dominant label, relative boxes (ymin, xmin, ymax,
    xmax)."""
    picture = scene(split, index)
    height, width = picture.image.shape[:2]
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR), quality)
    boxes = picture.boxes / np.array([height, width, height, width], np.float64)
    return {
        "image": encoded.tobytes(),
        "label": int(picture.labels[picture.dominant]),
        "objects": [
            {"bbox": tfds.features.BBox(*map(float, box)), "label": int(label)}
            for box, label in zip(boxes, picture.labels, strict=True)
        ],
    }


def prepare_scenes(data_dir: str | None) -> epath.Path:
    """Directory of the prepared data set; renders it first (seconds, offline) if it is not there.

    Safe when several processes start at once, on one machine or on a shared file system: each
    writes a directory of its own, and the first rename wins.

    Args:
      data_dir: where to keep it; None: $MCL_JAX_DATA or ~/.cache/mcl_jax.

    Raises:
      UserError: `data_dir` cannot be written.
    """
    if data_dir is None:
        data_dir = os.environ.get("MCL_JAX_DATA", "~/.cache/mcl_jax")
    root = epath.Path(paths.expanded(data_dir, "data_dir (or $MCL_JAX_DATA)"))
    final = root / "scenes" / str(Scenes.VERSION)
    if (final / "dataset_info.json").exists():
        return final
    paths.output_folder(root, "data_dir (or $MCL_JAX_DATA)")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(prefix=".preparing-", dir=final.parent)
    except OSError as error:
        raise UserError(f"cannot write data_dir {os.fspath(root)!r}: {error}") from error
    try:
        logging.info("rendering the built-in scenes into %s (about 15 s, once)", final)
        tfds.disable_progress_bar()
        builder = Scenes(data_dir=staging, file_format="array_record")
        config = tfds.download.DownloadConfig(num_shards=1)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about a download.
            builder.download_and_prepare(download_config=config)
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not (final / "dataset_info.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final
