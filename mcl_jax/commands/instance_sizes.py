"""Instance sizes of a data set before and after the montage (paper Figure 5):

    mcl-jax instance-sizes --dataset=scenes --config=demo --output=sizes.png
    mcl-jax instance-sizes --dataset=tfds:coco/2017 --split=train --json=sizes.json

Before: as a detector resizes images, or (data sets without boxes, one instance per image) at the
canvas's size. After: on the canvases of all levels together.
"""

from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results

CONFIG = cli.define_config()
DATASET = flags.DEFINE_string("dataset", None, "default: the config's")
SPLIT = flags.DEFINE_string("split", None, "default: the config's")
DATA_DIR = flags.DEFINE_string("data_dir", None, "where TFDS data sets lie")
SHORTER = flags.DEFINE_integer("shorter", 800, "px, a detector's shorter side", lower_bound=1)
LONGER = flags.DEFINE_integer("longer", 1333, "px, its longer side at most", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "histogram to draw, a PNG file")
JSON = flags.DEFINE_string("json", None, "also write the statistics to this file")


def main(_: Sequence[str]) -> None:
    from mcl_jax.data.sources import open_source
    from mcl_jax.evaluate import instance_sizes
    from mcl_jax.report import plots

    config = cli.config_of(CONFIG, required=False)
    if config is None:
        from mcl_jax.configs import base

        config = base.get_config()
    copies = instance_sizes.copies_of(config.montage)
    dataset, split = DATASET.value or config.data.dataset, SPLIT.value or config.data.split
    source = open_source(dataset, split, DATA_DIR.value or config.data.data_dir or None)
    boxes = instance_sizes.read(source, progress=True)
    side = config.data.image_size
    measured = instance_sizes.measure(
        boxes, copies, image_size=side, shorter=SHORTER.value, longer=LONGER.value
    )
    if isinstance(boxes, int):
        origin, resized = "no boxes: one instance per image", f"at {side} px"
    else:
        origin = f"{len(boxes.shares)} boxes, {boxes.unreadable} unreadable images left out"
        resized = f"shorter side {SHORTER.value} px, longer at most {LONGER.value} px"
    print(f"{dataset} {split}: {len(source)} images, {origin}; canvases of {side} px")
    print(instance_sizes.as_text(measured))
    if OUTPUT.value:
        names = {f"before ({resized})": instance_sizes.BEFORE}
        names[f"after ({len(copies)} levels on {side} px canvases)"] = instance_sizes.AFTER
        histogram = {title: measured[name] for title, name in names.items()}
        plots.size_histogram(OUTPUT.value, histogram, f"Instance sizes, {dataset} {split}")
    result = {"dataset": dataset, "split": split, "images": len(source), "copies": copies}
    result |= {"image_size": side, "shorter": SHORTER.value, "longer": LONGER.value}
    result |= {"boxes": not isinstance(boxes, int)}
    result["sizes"] = {k: instance_sizes.statistics(v) for k, v in measured.items()}
    results.write_json(JSON.value, result)
