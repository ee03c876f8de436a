"""Whether what runs only after hours of training, an evaluator, can run at all in this environment.

Two things end it then: a package that is not installed, imported where it is first used, and a
package that uses names which the installed numpy no longer has. Both stand in the source.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import ast
import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from mcl_jax.errors import UserError

# Detectron2's newest state imports Cityscapes' scripts from a place that is not public.
PRIVATE = "deeplearning.projects.cityscapesApi.cityscapesscripts"
PUBLIC = "cityscapesscripts"
MODULES = (
    "helpers",
    "helpers.labels",
    "evaluation",
    "evaluation.evalInstanceLevelSemanticLabeling",
    "evaluation.evalPixelLevelSemanticLabeling",
)


def demand_imports(source: Path, package: str | None, subject: str, otherwise: str = "") -> None:
    """Imports a package, and all that a module will import.

    Args:
      source: file of a module of Detectron2 that evaluates or reads a data set.
      package: of other people, which does the work; None: there is none.
      subject: what cannot be done, for messages.
      otherwise: how to do without, for messages.

    Raises:
      UserError: what is missing, and what would do.
    """
    for module in [*filter(None, [package]), *imports(source)]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing = error.name or module
            if missing.startswith(PRIVATE.split(".", 1)[0]):
                missing = PUBLIC
            raise UserError(
                f"{subject}: {missing.split('.')[0]} is not installed; {advice(package)}{otherwise}"
            ) from error


def demand_numpy(source: Path, package: str | None, subject: str, otherwise: str = "") -> None:
    """UserError where a module or its package, imported, uses what numpy no longer has.

    Args:
      source, package, subject, otherwise: see `demand_imports`.
    """
    files = [source]
    if package is not None:
        files += [
            Path(module.__file__)
            for key, module in list(sys.modules.items())
            if key.split(".")[0] == package
            and (getattr(module, "__file__", "") or "")[-3:] == ".py"
        ]
    for path in files:
        if lost := lost_names(path):
            raise UserError(
                f"{subject}: {package or path.stem}{version(package)} uses np.{lost[0]} "
                f"({path.name}), which numpy {np.__version__} no longer has; "
                f"{advice(package)}{otherwise}"
            )


def demand_plain_counts(subject: str, otherwise: str = "") -> None:
    """UserError where numpy counts in numbers of its own, which cityscapesscripts writes as JSON.

    Args:
      subject, otherwise: see `demand_imports`.
    """
    if not isinstance(np.count_nonzero(np.ones(1)), int):
        raise UserError(
            f"{subject}: {PUBLIC}{version(PUBLIC)} writes what np.count_nonzero gives as JSON, and "
            f"numpy {np.__version__} no longer gives a Python int; {advice(PUBLIC)}{otherwise}"
        )


def advice(package: str | None) -> str:
    """What to install."""
    needs = {
        "lvis": "pip install lvis matplotlib opencv-python-headless 'numpy<1.24'",
        PUBLIC: "pip install cityscapesscripts shapely 'numpy<2.3'",
        "pycocotools": "pip install pycocotools",
    }
    return needs.get(package or "", "install it")


def version(package: str | None) -> str:
    """' 0.5.3'; nothing where it is not known."""
    try:
        return f" {metadata.version(package)}" if package else ""
    except metadata.PackageNotFoundError:
        return ""


def imports(source: Path) -> list[str]:
    """Modules that a file imports by their full names, also inside of functions.

    What stands in a `try` is left out: the file does without it.
    """
    names = []
    for node in _outside_of_try(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.append(node.module)
    return list(dict.fromkeys(names))


def _outside_of_try(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Try):
            yield child
            yield from _outside_of_try(child)


def lost_names(source: Path) -> list[str]:
    """Names of numpy that a file uses and the installed numpy does not have."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    called = {"np", "numpy"}  # also where it comes with `import *`, as in cityscapesscripts
    called |= {
        alias.asname
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "numpy" and alias.asname
    }
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in called
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of names that it is going to lose
        return sorted(name for name in attributes if not hasattr(np, name))


def lend_public_names() -> None:
    """Puts the public cityscapesscripts, if installed, where Detectron2's newest state looks."""
    if PRIVATE in sys.modules:
        return
    try:
        public = {name: importlib.import_module(f"{PUBLIC}.{name}") for name in MODULES}
        importlib.import_module(PRIVATE)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != PRIVATE.split(".")[0]:
            return  # the public one is missing or lacks something: `demand` says so
    else:
        return
    parent = None
    for depth in range(1, PRIVATE.count(".") + 1):
        name = ".".join(PRIVATE.split(".")[:depth])
        module = sys.modules.setdefault(name, types.ModuleType(name))
        if parent is not None:
            setattr(parent, name.rsplit(".", 1)[-1], module)
        parent = module
    setattr(parent, PUBLIC, sys.modules[PUBLIC])
    sys.modules[PRIVATE] = sys.modules[PUBLIC]
    for name, module in public.items():
        sys.modules[f"{PRIVATE}.{name}"] = module
