"""Export to Detectron2: online backbone, FPN and box head as a .pkl with YAML and report.

Shapes: convolution kernels leave as OIHW, everything else as [C]; all float32, C-contiguous.
"""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert import architectures, detectron2_config, folder, report, strict, table
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import Architecture


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


def chosen_parts(given: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """`--parts` as some of architectures.PARTS; 'all' is everything that the run pre-trained.

    Raises:
      UserError: for a word that is no part, and for a part that the run did not pre-train.
    """
    trained = architectures.detector_parts(config)
    if given == "all":
        return trained
    words = given.split(",")
    for word in words:
        if word not in architectures.PARTS:
            known = ", ".join(architectures.PARTS)
            raise UserError(f"--parts {given}: {word!r} is not one of {known}, or all")
        if word not in trained:
            raise UserError(
                f"--parts {given}: this run pre-trained no {word} that a detector could load, "
                f"only {', '.join(trained)}"
            )
    return tuple(part for part in architectures.PARTS if part in words)


class _Pickler(pickle.Pickler):
    """Writes arrays without naming numpy's private modules.

    numpy 2 names numpy._core in its pickles, which numpy 1 does not have; an empty numpy.ndarray
    that receives its state afterwards is understood by both.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, ((0,),), obj.__reduce__()[2]
        return NotImplemented


def rows(a: Architecture, parts: Sequence[str]) -> list[table.Tensor]:
    """Every array that goes to Detectron2, given which of architectures.PARTS are to."""
    roots = tuple(f"/encoder/{part}/" for part in parts)
    return [t for t in table.online(a) if t.detectron2 and any(r in t.source for r in roots)]


def tensors(
    state: Mapping[str, Any], a: Architecture, parts: Sequence[str] = architectures.PARTS
) -> dict[str, np.ndarray]:
    """Detectron2 name -> array, after checking these parts of the online network strictly.

    Args:
      state: nested dicts of arrays with the fields of TrainState.
      a: its networks.
      parts: which of architectures.PARTS.

    Raises:
      UserError: names every missing, unexpected, misshapen or non-finite array.
    """
    fields = ("params", "batch_stats")
    arrays = strict.flatten({field: state.get(field, {}) for field in fields})
    ours = rows(a, parts)
    roots = tuple(f"{field}/encoder/{part}/" for field in fields for part in parts)
    strict.demand(
        strict.problems(
            {name: x for name, x in arrays.items() if name.startswith(roots)},
            {t.source: t.shape for t in ours},
        ),
        f"the checkpoint does not hold the {a.backbone} that its configuration names",
    )
    return {t.detectron2: table.to_torch(arrays[t.source]) for t in ours}


def write_pickle(path: Path, model: Mapping[str, np.ndarray]) -> None:
    """A file that Detectron2's DetectionCheckpointer loads by suffix matching.

    `__author__` makes it read `model` (any name but 'Caffe2'); protocol 4 is read by Python 3.4+.
    """
    content = {"model": dict(model), "__author__": "mcl_jax", "matching_heuristics": True}
    with path.open("wb") as file:
        _Pickler(file, protocol=4).dump(content)


def verify(path: Path, model: Mapping[str, np.ndarray]) -> str:
    """Re-reads the written file, compares every array bit by bit, returns its sha256."""
    data = path.read_bytes()
    read = pickle.loads(data)["model"]
    folder.demand_equal(read, model, path.name)
    return hashlib.sha256(data).hexdigest()


def export(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    out: Path,
    parts: str,
) -> list[Path]:
    """Writes pkl, YAML, report.json and report.txt into `out`, see `folder.write`.

    Args:
      state, meta: what `mcl_jax.checkpoint.read` returns.
      source: what the user called the checkpoint, for the report.
      out: folder.
      parts: see `chosen_parts`.

    Returns:
      The written files.

    Raises:
      UserError: for a backbone that Detectron2 does not have, and as `tensors`.
    """
    a = architectures.from_config(meta["config"])
    architectures.demand_resnet(a, "stock Detectron2")
    taken = chosen_parts(parts, meta["config"])
    model = tensors(state, a, taken)
    weights = f"mcl_{a.backbone}.pkl"
    depth = a.backbone.removeprefix("resnet")

    def fill(temporary: Path) -> None:
        write_pickle(temporary / weights, model)
        digest = verify(temporary / weights, model)
        config = detectron2_config.text(a, str(out.resolve() / weights))
        (temporary / f"mask_rcnn_R_{depth}_FPN_1x.yaml").write_text(config, encoding="utf-8")
        content = _report(state, meta, source, model, a, taken)
        report.write(temporary, content | {"file": weights, "sha256": digest})

    return folder.write(out, fill)


def _report(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    model: Mapping[str, np.ndarray],
    a: Architecture,
    parts: Sequence[str],
) -> dict[str, Any]:
    trained = architectures.detector_parts(meta["config"])
    notes = detectron2_config.limits(a)
    if len(trained) < len(architectures.PARTS):
        notes.append(
            f"{architectures.method(meta['config'])} with neck {a.neck} pre-trains the backbone "
            "alone: a detector's FPN and box head start from scratch"
        )
    idle = architectures.idle_levels(meta["config"])
    if "fpn" in parts and idle:
        notes.append(
            f"no loss read {', '.join(idle)}: the FPN's output layers for them are untrained"
        )
    return report.describe(
        "detectron2",
        state,
        meta,
        source,
        model,
        {t.detectron2: t.source for t in rows(a, parts)},
        notes=notes,
        models=loading(parts),
        reasons={"head": "RoI head: it reads another map than a detector's"}
        | {part: "not asked for (--parts)" for part in trained},
    )
