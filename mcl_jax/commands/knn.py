"""kNN accuracy and scale consistency of a checkpoint:

    mcl-jax knn --workdir runs/demo
    mcl-jax knn --workdir runs/r50 --dataset=tfds:imagenet2012 --json=runs/r50/knn.json

The checkpoint's own config says the rest (section `knn`).
"""

from collections.abc import Sequence

from absl import flags

from mcl_jax.commands import results

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder, or one of its checkpoints")
OVERRIDES = {
    ("data", "dataset"): flags.DEFINE_string("dataset", None, "labeled data set"),
    ("data", "data_dir"): flags.DEFINE_string("data_dir", None, "where TFDS data sets lie"),
    ("knn", "bank_split"): flags.DEFINE_string("bank_split", None, "images that vote"),
    ("knn", "query_split"): flags.DEFINE_string("query_split", None, "images to classify"),
    ("knn", "neighbors"): flags.DEFINE_integer("neighbors", None, "images that vote on each"),
    ("knn", "temperature"): flags.DEFINE_float("temperature", None, "of the votes"),
    ("knn", "max_images"): flags.DEFINE_integer("max_images", None, "the first so many per split"),
}
JSON = flags.DEFINE_string("json", None, "also write the result to this file")


def main(_: Sequence[str]) -> None:
    from mcl_jax import sharding
    from mcl_jax.commands import checkpoints
    from mcl_jax.errors import UserError
    from mcl_jax.evaluate import monitor

    if not WORKDIR.value:
        raise UserError(f"--workdir FOLDER is missing: {flags.FLAGS['workdir'].help}")
    state, meta, config = checkpoints.read(WORKDIR.value, OVERRIDES)
    values = monitor.evaluate_checkpoint(state, config, sharding.make_mesh())
    print(
        f"{config['data']['dataset']}, step {meta['step']}, {config['knn']['neighbors']} neighbors"
    )
    print(monitor.as_text(values))
    evaluated = {key: config["data"][key] for key in ("dataset", "image_size")} | config["knn"]
    result = {"step": meta["step"], "config": evaluated, "values": values}
    results.write_json(JSON.value, result)
