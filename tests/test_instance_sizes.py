"""Instance sizes of hand-made boxes, the numbers of Figure 5's captions, and the script."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import tiny_config
from PIL import Image

from mcl_jax.data.sources import TfdsSource
from mcl_jax.errors import UserError
from mcl_jax.evaluate import instance_sizes

REPO = Path(__file__).resolve().parent.parent
# Per image (height, width), boxes as shares, crowd flags: a quarter of it, a box without area, a
# crowd; then a sixteenth; then none.
IMAGES = [
    ((400, 600), [(0, 0, 0.5, 0.5), (0.2, 0.2, 0.2, 0.9), (0, 0, 1, 1)], [False, False, True]),
    ((400, 1600), [(0.5, 0.5, 0.75, 0.75)], [False]),
    ((30, 30), [], []),
]


class Boxed(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Three images with boxes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = {"bbox": tfds.features.BBoxFeature(), "is_crowd": np.bool_}
        features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._examples(IMAGES), "bare": self._examples(IMAGES[2:])}

    def _examples(self, images):
        for i, ((height, width), boxes, crowds) in enumerate(images):
            file = io.BytesIO()
            Image.new("RGB", (width, height)).save(file, "PNG")
            objects = [
                {"bbox": tfds.features.BBox(*map(float, box)), "is_crowd": crowd}
                for box, crowd in zip(boxes, crowds, strict=True)
            ]
            yield i, {"image": file.getvalue(), "objects": objects}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    builder = Boxed(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
    return root


def test_boxes_are_read_without_crowds_and_empty_ones(data_dir):
    source = TfdsSource(str(data_dir / "boxed/1.0.0"), "train")
    boxes = instance_sizes.read(source, progress=False)
    order = np.argsort(-boxes.shares)
    np.testing.assert_allclose(boxes.shares[order], [1 / 4, 1 / 16], rtol=1e-6)  # float32 boxes
    np.testing.assert_array_equal(boxes.extents[order], [(400, 600), (400, 1600)])
    assert boxes.unreadable == 0
    with pytest.raises(UserError, match="no boxes in the 1 images"):
        instance_sizes.read(TfdsSource(str(data_dir / "boxed/1.0.0"), "bare"), progress=False)


def test_before_follows_the_detection_rule():
    boxes = instance_sizes.Boxes(np.array([1 / 4, 1 / 16]), np.array([(400, 600), (400, 1600)]), 0)
    sizes = instance_sizes.before_sizes(boxes, 800, 1333)
    # 400 x 600 doubles: half of 800 x 1200. 400 x 1600 may only shrink, to 1333 px across
    expected = [np.sqrt(400 * 600), np.sqrt(100 * 400) * 1333 / 1600]
    np.testing.assert_allclose(sizes, expected, rtol=1e-12)


def test_montage_halves_sizes_level_by_level_and_counts_copies():
    measured = instance_sizes.measure(2, (1, 1, 1, 2), image_size=224, shorter=800, longer=1333)
    assert list(measured) == ["before", "level 0", "level 1", "level 2", "level 3", "montage"]
    np.testing.assert_array_equal(measured["before"], [224, 224])
    np.testing.assert_array_equal(measured["level 3"], [28] * 4)
    np.testing.assert_array_equal(
        np.sort(measured["montage"]), [28] * 4 + [56] * 2 + [112] * 2 + [224] * 2
    )
    values = instance_sizes.statistics(measured["montage"])
    mean = (224 + 112 + 56 + 2 * 28) / 5
    variance = (224**2 + 112**2 + 56**2 + 2 * 28**2) / 5 - mean**2
    assert values["instances"] == 10
    assert values["mean"] == pytest.approx(mean) and values["std"] == pytest.approx(variance**0.5)
    # log2 is 3, 2, 1, 0, 0 above 28 px
    assert values["octaves"] == pytest.approx(np.std([3, 2, 1, 0, 0]))


def test_boxes_shrink_with_the_image_that_fills_its_cell():
    boxes = instance_sizes.Boxes(np.array([1 / 4, 1 / 16]), np.array([(400, 600), (400, 1600)]), 0)
    measured = instance_sizes.measure(
        boxes, (0, 1), image_size=64, shorter=800, longer=1333
    )  # a mosaic
    assert list(measured) == ["before", "level 1", "montage"]
    np.testing.assert_array_equal(measured["montage"], [16, 8])


def test_copies_are_the_configs_own():
    montage = tiny_config().montage
    assert instance_sizes.copies_of(montage) == (1, 1, 1, 2)
    montage.levels = 2
    assert instance_sizes.copies_of(montage) == (1, 1)
    montage.assembly = "mosaic"
    assert instance_sizes.copies_of(montage) == (0, 1)
    montage.assembly = "copy_paste"
    with pytest.raises(UserError, match="'copy_paste' pastes over other images"):
        instance_sizes.copies_of(montage)


def test_the_script_prints_draws_and_writes(data_dir, tmp_path):
    flags = ["--dataset=tfds:boxed", f"--data_dir={data_dir}", f"--output={tmp_path / 'sizes.png'}"]
    done = subprocess.run(
        [sys.executable, REPO / "scripts/instance_sizes.py", *flags, f"--json={tmp_path / 'j'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sizes = json.loads((tmp_path / "j").read_text())["sizes"]
    assert sizes["montage"]["instances"] == 10 and sizes["before"]["instances"] == 2
    assert f"{sizes['before']['mean']:.2f}" in done.stdout
    with Image.open(tmp_path / "sizes.png") as picture:
        assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 5
