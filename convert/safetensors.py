"""Export to safetensors: all networks in our own names and layouts, with what made them.

Shapes: arrays are as in a checkpoint (convert/table.py), nothing is transposed.
"""

from convert.architectures import PARTS
from convert.export import Job, Target
from convert.files import SAFETENSORS
from convert.views import Entry, View, networks


def view(job: Job) -> View:
    """Every array of the online and the target network, in alphabetical order."""
    arrays = sorted(networks(job.state).items())
    entries = tuple(Entry(name, x.shape, name, "same") for name, x in arrays)
    return View(entries, ("",))


TARGET = Target(
    name="safetensors",
    format=SAFETENSORS,
    stem=lambda a, parts: a.backbone,
    parts=PARTS,
    default="all",
    demand=lambda job: None,
    view=view,
    files=lambda job: {},
    notes=lambda job: [],
    models=lambda job: {"mcl_jax": {"loads": "all", "from_scratch": "nothing"}},
    reasons=lambda job: {},
)
