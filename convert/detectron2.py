"""Export to Detectron2: online backbone, FPN and box head as a .pkl with YAML and report.

Shapes: convolution kernels leave as OIHW, everything else as [C]; all float32, C-contiguous.
"""

import hashlib
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import architectures, detectron2_config, report, strict, table
from mcl_jax.errors import UserError
from mcl_jax.models.encoder import Architecture

# Detectron2's model -> (what of the file it loads, what it trains from scratch), for the report.
EVERYTHING = "everything (box head as in the YAML)"
MODELS = {
    "Mask R-CNN / Faster R-CNN FPN": (EVERYTHING, "RPN, box fc1 and predictor, mask head"),
    "Keypoint R-CNN FPN": (EVERYTHING, "RPN, box fc1 and predictor, keypoint head"),
    "RetinaNet FPN": ("backbone, fpn_*3..5", "P6/P7, class and box subnets; box head not used"),
    "Mask R-CNN / Faster R-CNN C4": (
        "backbone (res5 as roi_heads.res5)",
        "RPN, predictors, mask head",
    ),
}

LEFT_OUT = (
    ("params/encoder/projector/", "projector: pre-training only"),
    ("batch_stats/encoder/projector/", "projector: pre-training only"),
    ("params/predictor/", "predictors: pre-training only"),
    ("batch_stats/predictor/", "predictors: pre-training only"),
    ("target_params/", "target network: the online network is the one that is transferred"),
    ("target_batch_stats/", "target network: the online network is the one that is transferred"),
)


class _Pickler(pickle.Pickler):
    """Writes arrays without naming numpy's private modules.

    numpy 2 names numpy._core in its pickles, which numpy 1 does not have; an empty numpy.ndarray
    that receives its state afterwards is understood by both.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray:
            return np.ndarray, ((0,),), obj.__reduce__()[2]
        return NotImplemented


def tensors(state: Mapping[str, Any], a: Architecture) -> dict[str, np.ndarray]:
    """Detectron2 name -> array, after checking the whole online network strictly.

    Args:
      state: nested dicts of arrays with the fields of TrainState.
      a: its networks.

    Raises:
      UserError: names every missing, unexpected, misshapen or non-finite array.
    """
    fields = ("params", "batch_stats")
    arrays = strict.flatten({field: state.get(field, {}) for field in fields})
    ours = [t for t in table.online(a) if t.detectron2]
    left_out = tuple(prefix for prefix, _ in LEFT_OUT)
    strict.demand(
        strict.problems(
            {name: x for name, x in arrays.items() if not name.startswith(left_out)},
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
    same = list(read) == list(model) and all(
        read[name].dtype == x.dtype and np.array_equal(read[name], x) for name, x in model.items()
    )
    if not same:
        raise RuntimeError(f"{path.name} does not read back as it was written: is the disk sound?")
    return hashlib.sha256(data).hexdigest()


def export(state: Mapping[str, Any], meta: Mapping[str, Any], source: str, out: Path) -> list[Path]:
    """Writes pkl, YAML, report.json and report.txt into `out`.

    Everything is written into a temporary folder beside `out` and moved when all of it is there
    and verified. Files of the same names in `out` are replaced, others are left alone.

    Args:
      state, meta: what `mcl_jax.checkpoint.read` returns.
      source: what the user called the checkpoint, for the report.
      out: folder.

    Returns:
      The written files.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    a = architectures.from_config(meta["config"])
    model = tensors(state, a)
    weights = f"mcl_{a.backbone}.pkl"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_pickle(temporary / weights, model)
        digest = verify(temporary / weights, model)
        config = detectron2_config.text(a, str(out.resolve() / weights))
        depth = a.backbone.removeprefix("resnet")
        (temporary / f"mask_rcnn_R_{depth}_FPN_1x.yaml").write_text(config, encoding="utf-8")
        content = _report(state, meta, source, model, a) | {"file": weights, "sha256": digest}
        report.write(temporary, content)
        out.mkdir(exist_ok=True)
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            (temporary / name).replace(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / name for name in names]


def _report(
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    source: str,
    model: Mapping[str, np.ndarray],
    a: Architecture,
) -> dict[str, Any]:
    sources = {t.detectron2: t.source for t in table.online(a) if t.detectron2}
    everything = strict.flatten({field: x for field, x in state.items() if isinstance(x, Mapping)})
    left_out = [
        report.left_out(
            prefix, [x for name, x in everything.items() if name.startswith(prefix)], why
        )
        for prefix, why in LEFT_OUT
    ]
    left_out.append({"source": "opt_state, memory", "reason": "training state: not weights"})
    return {
        "target": "detectron2",
        "checkpoint": source,
        "step": int(meta["step"]),
        "backbone": a.backbone,
        "notes": detectron2_config.limits(a),
        "models": {
            name: {"loads": loads, "from_scratch": scratch}
            for name, (loads, scratch) in MODELS.items()
        },
        "tensors": [report.tensor(name, sources[name], x) for name, x in model.items()],
        "left_out": left_out,
    }
