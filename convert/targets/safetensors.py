"""Export to safetensors: all networks in our own names and layouts, with what made them.

Shapes: arrays are as in a checkpoint (convert/names/table.py), nothing is transposed.
"""

import flax

from mcl_jax import program
from mcl_jax.convert.export import ExportJob, Target
from mcl_jax.convert.files.formats import SAFETENSORS
from mcl_jax.convert.names import architectures
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.layouts import NETWORKS, Entry, FileLayout


def layout(job: ExportJob) -> FileLayout:
    """Every array of the online and the target network that the run's configuration has, sorted."""
    expected = program.abstract_state(architectures.on_one_device(job.config))
    shapes = flax.traverse_util.flatten_dict(
        {name: getattr(expected, name) for name in NETWORKS}, sep="/"
    )
    entries = tuple(
        Entry(name, x.shape, name=name, layout="ours") for name, x in sorted(shapes.items())
    )
    return FileLayout(entries, ("",))


TARGET = Target(
    name="safetensors",
    format=SAFETENSORS,
    stem=lambda a, parts: a.backbone,
    parts=PARTS,
    default="all",
    demand=lambda job: None,
    layout=layout,
    files=lambda job: {},
    notes=lambda job: [],
    models=lambda job: {"mcl_jax": {"loads": "all", "from_scratch": "nothing"}},
    reasons=lambda job: {},
)
