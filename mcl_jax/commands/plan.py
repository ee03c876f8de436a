"""What a run will need on a pod, without the pod:

    pip install "mcl_jax[tpu]"
    mcl-jax plan --config mcl --topology v5e:16x16
    mcl-jax plan --config demo --topology cpu:8 --json plan.json
    mcl-jax plan --config mcl --topology v5e:16x16 --operations 20

Topologies: v2, v3, v4, v5e, v5p and v6e with the shape of the slice (v4 and v5p have three
dimensions), cpu:N, or gpu for what is here. Times are bounds from published peaks, not promises.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results

CPP_LOG_LEVEL = "3"  # the TPU compiler says a lot
CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "e.g. v5e:16x16, v4:4x4x8, cpu:8, gpu")
SLICES = flags.DEFINE_integer("slices", 1, "pod slices that run as one job")
IMAGES = flags.DEFINE_integer(
    "images", None, "training images; default: known for ImageNet and COCO", lower_bound=1
)
OPERATIONS = flags.DEFINE_integer(
    "operations",
    0,
    "also where the bytes are, and so many of the longest operations",
    lower_bound=0,
)
CACHE = flags.DEFINE_string("cache", "~/.cache/mcl_jax/plans", "earlier figures; empty: none")
JSON = flags.DEFINE_string("json", None, "also write the plan to this file")

# Images of the splits that the paper trains on: planning needs no data.
KNOWN = {
    ("tfds:imagenet2012", "train"): 1_281_167,
    ("tfds:coco/2017", "train"): 118_287,
    ("tfds:coco/2017", "train+unlabeled"): 241_690,
}


def main(_: Sequence[str]) -> None:
    config = cli.config_of(CONFIG)
    if not TOPOLOGY.value:
        cli.fail("--topology is missing, e.g. --topology v5e:16x16")

    from mcl_jax.planning import operations, plan, topology

    where = topology.parse(TOPOLOGY.value, SLICES.value)
    topology.prepare_process(where)
    cache = Path(CACHE.value) if CACHE.value else None
    images, longest = IMAGES.value or images_of(config), OPERATIONS.value
    result = plan.make(config, where, images=images, cache=cache, longest=longest)
    print(plan.describe(result))
    if longest:
        print(operations.as_text(result["account"]))
    results.write_json(JSON.value, result)


def images_of(config) -> int:
    """Training images of a configuration: known ones, or what its data set says."""
    from mcl_jax.data.sources import open_source

    data = config.data
    count = KNOWN.get((data.dataset, data.split))
    return count or len(open_source(data.dataset, data.split, data.data_dir or None))
