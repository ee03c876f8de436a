"""Export to Detectron2: online backbone, FPN and box head as a .pkl, with the YAML.

Shapes: convolution kernels leave as OIHW, everything else as [C]; all float32.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mcl_jax.convert.export import ExportJob, Target
from mcl_jax.convert.files.formats import PICKLE
from mcl_jax.convert.names import architectures, detectors
from mcl_jax.convert.targets import detectron2_config


class Detector(NamedTuple):
    """A model of Detectron2: what of architectures.PARTS it loads, in words, and what it never does."""

    loads: Mapping[str, str]
    from_scratch: str


REGIONS = {"backbone": "backbone", "fpn": "FPN", "head": "box head (as in the YAML)"}
DETECTORS = {
    "Mask R-CNN / Faster R-CNN FPN": Detector(REGIONS, "RPN, box fc1 and predictor, mask head"),
    "Keypoint R-CNN FPN": Detector(REGIONS, "RPN, box fc1 and predictor, keypoint head"),
    "Panoptic FPN": Detector(REGIONS, "RPN, box fc1 and predictor, mask head, semantic head"),
    "Semantic FPN": Detector({"backbone": "backbone", "fpn": "FPN"}, "semantic head"),
    "RetinaNet FPN": Detector(
        {"backbone": "backbone", "fpn": "FPN (fpn_*3..5)"}, "P6/P7, class and box subnets"
    ),
    "Mask R-CNN / Faster R-CNN C4": Detector(
        {"backbone": "backbone (res5 as roi_heads.res5)"}, "RPN, predictors, mask head"
    ),
}


def loading(parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Detector -> {'loads', 'from_scratch'} of a file with these parts, for the report."""
    result = {}
    for name, detector in DETECTORS.items():
        words = [text for part, text in detector.loads.items() if part in parts]
        absent = [REGIONS[part] for part in detector.loads if part not in parts]
        new = ", ".join([*absent, detector.from_scratch])
        result[name] = {"loads": ", ".join(words) or "nothing", "from_scratch": new}
    return result


def notes(job: ExportJob) -> list[str]:
    """What the user of the file has to know."""
    a, parts = job.architecture, architectures.detector_parts(job.config)
    lines = detectron2_config.limits(a)
    if len(parts) < len(architectures.PARTS):
        lines.append(
            f"{architectures.method(job.config)} with neck {a.neck} pre-trains the backbone "
            "alone: a detector's FPN and box head start from scratch"
        )
    return lines + untrained_levels(job)


def untrained_levels(job: ExportJob) -> list[str]:
    """A note where the file has an FPN of which no loss read some levels."""
    idle = architectures.idle_levels(job.config)
    if not idle or "fpn" not in job.parts:
        return []
    return [f"no loss read {', '.join(idle)}: the FPN's output layers for them are untrained"]


def not_taken(job: ExportJob) -> dict[str, str]:
    """Why parts of a detector stay behind."""
    trained = architectures.detector_parts(job.config)
    reasons = {"head": "RoI head: it reads another map than a detector's"}
    return reasons | {part: "not asked for (--parts)" for part in trained}


def files(job: ExportJob) -> dict[str, str]:
    """The fine-tuning configuration."""
    a = job.architecture
    text = detectron2_config.text(a, str(job.weights), job.parts, folded=job.folded)
    return {detectron2_config.name(a, job.parts): text}


TARGET = Target(
    name="detectron2",
    format=PICKLE,
    stem=lambda a, parts: a.backbone,
    parts=architectures.PARTS,
    default="all",
    demand=lambda job: architectures.demand_resnet(job.architecture, "stock Detectron2"),
    layout=lambda job: detectors.layout(
        job.architecture, "detectron2", parts=job.parts, folded=job.folded
    ),
    files=files,
    notes=notes,
    models=lambda job: loading(job.parts),
    reasons=not_taken,
)
