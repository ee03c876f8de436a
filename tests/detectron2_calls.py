"""Which functions and classes of Detectron2 the kit calls, and whether the calls fit their signatures.

Run in Detectron2's environment, it writes the list that the tests without Detectron2 go by:

    python tests/detectron2_calls.py

A signature is [[name, kind, whether it has a default], ...], without `self`.
"""

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "convert" / "finetuning").glob("*.py"))
LIST = Path(__file__).parent / "data" / "detectron2_signatures.json"
LIBRARY = "detectron2"
# Methods called on objects of the library -> their class. Of `cfg`, `trainer` and the like the
# source does not say what they are; `unknown` says when one is missing here.
METHODS = {
    "cfg.merge_from_file": "detectron2.config.CfgNode.merge_from_file",
    "cfg.merge_from_list": "detectron2.config.CfgNode.merge_from_list",
    "cfg.freeze": "detectron2.config.CfgNode.freeze",
    "cfg.defrost": "detectron2.config.CfgNode.defrost",
    "cfg.clone": "detectron2.config.CfgNode.clone",
    "checkpointer.resume_or_load": "detectron2.checkpoint.DetectionCheckpointer.resume_or_load",
    "trainer.resume_or_load": "detectron2.engine.DefaultTrainer.resume_or_load",
    "trainer.train": "detectron2.engine.DefaultTrainer.train",
    "Trainer": "detectron2.engine.DefaultTrainer",
    "Trainer.build_model": "detectron2.engine.DefaultTrainer.build_model",
    "Trainer.test": "detectron2.engine.DefaultTrainer.test",
    "MetadataCatalog.get.as_dict": "detectron2.data.catalog.Metadata.as_dict",
    "build": "detectron2.evaluation.COCOEvaluator",  # of several: see EVALUATORS
}
OF_DICTS = ("MetadataCatalog.get.as_dict.get",)
EVALUATORS = (
    "COCOEvaluator",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
)
# Methods that classes of ours override: what calls them is Detectron2.
OVERRIDDEN = {
    "Trainer.build_evaluator": "detectron2.engine.DefaultTrainer.build_evaluator",
    "Res5ROIHeadsExtraNorm.__init__": "detectron2.modeling.roi_heads.Res5ROIHeads",
}
OBJECTS = ("cfg", "trainer", "Trainer", "checkpointer", "build")


class Call(NamedTuple):
    """A call in one of SOURCES; `target` is the dotted name of what is called in the library."""

    target: str
    node: ast.Call
    place: str


def calls() -> Iterator[Call]:
    """All calls of the library in SOURCES."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        names = imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                written = dotted(node.func)
                target = METHODS.get(written) or resolve(written, names)
                if target and written not in OF_DICTS:
                    yield Call(target, node, f"{path.name}:{node.lineno}: {written}")


def unknown() -> list[str]:
    """Methods called on the library's objects that METHODS does not list."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                written = dotted(node.func)
                if written.split(".")[0] in OBJECTS and written not in METHODS:
                    found.append(f"{path.name}:{node.lineno}: {written}")
    return found


def imported(tree: ast.AST) -> dict[str, str]:
    """Name in a module -> its dotted name in the library."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == LIBRARY:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST) -> str:
    """'MetadataCatalog.get.as_dict' of `MetadataCatalog.get(name).as_dict`; '' for what is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = dotted(node.value)
        return f"{above}.{node.attr}" if above else ""
    return dotted(node.func) if isinstance(node, ast.Call) else ""


def resolve(written: str, names: dict[str, str]) -> str | None:
    first, _, rest = written.partition(".")
    if first not in names:
        return None
    return f"{names[first]}.{rest}" if rest else names[first]


def wanted() -> list[str]:
    """Everything whose signature has to be known."""
    evaluators = [f"detectron2.evaluation.{name}" for name in EVALUATORS]
    return sorted({call.target for call in calls()} | set(OVERRIDDEN.values()) | set(evaluators))


def signature_of(target: str) -> list[list]:
    """The real one, of the installed library."""
    path, *rest = target.split(".")
    found = importlib.import_module(path)
    for name in rest:  # `detectron2.engine.launch` is a module and, first of all, a function
        path = f"{path}.{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(path)
    parameters = list(inspect.signature(found).parameters.values())
    if parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    return [[p.name, p.kind.name, p.default is not p.empty] for p in parameters]


def as_signature(rows: list[list]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect._ParameterKind[kind],
                default=None if has_default else inspect.Parameter.empty,
            )
            for name, kind, has_default in rows
        ]
    )


def mistake(call: ast.Call, rows: list[list]) -> str | None:
    """Why a call does not fit a signature; None if it does."""
    values = [None for argument in call.args if not isinstance(argument, ast.Starred)]
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    try:
        as_signature(rows).bind(*values, **keywords)
    except TypeError as error:
        return str(error)
    return None


def main() -> None:
    import detectron2
    import fvcore

    sys.path.insert(0, str(ROOT))
    content = {
        "detectron2": detectron2.__version__,
        "fvcore": fvcore.__version__,
        "signatures": {target: signature_of(target) for target in wanted()},
    }
    LIST.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {LIST}: {len(content['signatures'])} signatures")


if __name__ == "__main__":
    main()
