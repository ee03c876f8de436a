"""Exports to torchvision and timm: a state_dict (.pth), and a loader that builds the model.

Shapes: see convert/names/classifiers.py and convert/names/detectors.py.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from mcl_jax.convert.export import ExportJob, Target
from mcl_jax.convert.files import strict
from mcl_jax.convert.files.formats import TORCH
from mcl_jax.convert.names import architectures, classifiers, detectors
from mcl_jax.convert.names.architectures import PARTS
from mcl_jax.convert.names.classifiers import TIMM, TORCHVISION, Library
from mcl_jax.convert.names.layouts import FileLayout
from mcl_jax.convert.targets import torchvision_detectors
from mcl_jax.convert.targets.detectron2 import not_taken, untrained_levels
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import is_swin

LOADER = '''\
"""Builds {builds} with the weights of {weights}.

    from load_{library} import model
"""

from pathlib import Path

import torch
import {imported}

model = {builds}
state = torch.load(Path(__file__).with_name("{weights}"), weights_only=True)
missing, unexpected = model.load_state_dict(state, strict=False)
# What starts from scratch, and nothing else:
SCRATCH = {scratch}
wrong = [name for name in missing if not name.startswith(SCRATCH)] + unexpected
assert not wrong, wrong
'''


def is_detector(parts: Sequence[str]) -> bool:
    """Whether a file is for a detector instead of a classifier."""
    return tuple(parts) != ("backbone",)


def classes(job: ExportJob) -> int | None:
    """Of the run's classifier of whole images; None: it trained none."""
    if not architectures.classifies_images(job.config):
        return None
    bias = strict.flatten(job.state["params"]).get("classifier/bias", np.zeros(0))
    return bias.size  # of a missing one: none, and the strict check names it


def layout(job: ExportJob, library: Library) -> FileLayout:
    """A classifier's names for the backbone alone, a detector's with an FPN."""
    if is_detector(job.parts):
        return detectors.layout(job.architecture, "torchvision", parts=job.parts, folded=job.folded)
    return classifiers.layout(job.architecture, library, classes=classes(job))


def files(job: ExportJob, library: Library) -> dict[str, str]:
    """The loader; none for widths that the library's constructors do not build."""
    a = job.architecture
    if a.width != classifiers.STOCK_WIDTH[is_swin(a.backbone)]:
        return {}
    name, imported = f"load_{library.name}.py", library.name
    if is_detector(job.parts):
        if not torchvision_detectors.stock_name(job):
            text = torchvision_detectors.loader(job)
            return {name: text} if text else {}
        builds, scratch = torchvision_detectors.builds(job), torchvision_detectors.scratch(job)
        imported = "torchvision"
    else:
        builds, scratch = library.builds(a.backbone), ()
        if (count := classes(job)) is None:
            scratch = (f"{classifiers.classifier_name(a, library)}.",)
        else:
            builds = builds.replace("()", f"(num_classes={count})").replace(
                "')", f"', num_classes={count})"
            )
    text = LOADER.format(
        builds=builds,
        library=library.name,
        weights=job.weights.name,
        imported=imported,
        scratch=scratch,
    )
    return {name: text}


def notes(job: ExportJob, library: Library) -> list[str]:
    a = job.architecture
    if is_detector(job.parts):
        width = classifiers.limits(a, library, classes=None)
        return [*width, *untrained_levels(job), *torchvision_detectors.note(job)]
    return classifiers.limits(a, library, classes=classes(job))


def models(job: ExportJob, library: Library) -> dict[str, dict[str, str]]:
    a = job.architecture
    if is_detector(job.parts):
        words = ", ".join(f"{prefix}*" for prefix in torchvision_detectors.scratch(job))
        about = {"loads": ", ".join(job.parts), "from_scratch": words}
        return {torchvision_detectors.builds(job): about}
    classifier = classifiers.classifier_name(a, library)
    scratch = f"{classifier} (load with strict=False)" if classes(job) is None else "nothing"
    return {library.builds(a.backbone): {"loads": "all", "from_scratch": scratch}}


def reasons(job: ExportJob) -> dict[str, str]:
    if is_detector(job.parts):
        return not_taken(job)
    outside = {part: f"{part}: a classifier has none" for part in ("fpn", "head")}
    output_norms = "output norms of res2..res4: a classifier has that of the last stage only"
    return outside | {"backbone": output_norms}


def demand(job: ExportJob) -> None:
    """UserError for detectors that torchvision does not have."""
    if is_detector(job.parts) and is_swin(job.architecture.backbone):
        raise UserError("torchvision has no detector with Swin; --to mmdet has one")
    if job.folded and "head" in job.parts:
        raise UserError(
            "torchvision's detectors without norms have a box head of linear layers: "
            "--fold-norms goes with --parts backbone,fpn"
        )


def target(library: Library, parts: tuple[str, ...]) -> Target:
    return Target(
        name=library.name,
        format=TORCH,
        stem=lambda a, parts: f"maskrcnn_{a.backbone}_fpn" if is_detector(parts) else a.backbone,
        parts=parts,
        default="backbone",
        demand=demand,
        layout=partial(layout, library=library),
        files=partial(files, library=library),
        notes=partial(notes, library=library),
        models=partial(models, library=library),
        reasons=reasons,
    )


TARGETS = (target(TORCHVISION, PARTS), target(TIMM, PARTS[:1]))
