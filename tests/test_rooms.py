"""Which room may import which: downwards only, and never out of the library."""

import ast
import re
import sys
from pathlib import Path

import pytest

from mcl_jax.finetune import machine

ROOT = Path(__file__).parents[1]
# From the top of the house down; rooms and modules of one line may import each other.
FLOORS = (
    ("mcl_jax.__main__", "mcl_jax.convert.__main__"),
    ("mcl_jax.commands",),
    ("mcl_jax.api",),
    ("mcl_jax.convert.command",),
    ("mcl_jax.convert.checkpoints",),
    ("mcl_jax.convert.targets",),
    ("mcl_jax.convert.export", "mcl_jax.convert.imports"),
    ("mcl_jax.convert.recognition", "mcl_jax.convert.transform"),
    ("mcl_jax.convert.finetuning",),
    ("mcl_jax.convert.checks",),
    ("mcl_jax.convert.names",),
    ("mcl_jax.convert.files",),
    ("mcl_jax.convert.arguments",),
    ("mcl_jax.configs",),
    ("mcl_jax.faults", "mcl_jax.study", "mcl_jax.finetune"),
    ("mcl_jax.planning.plan",),
    ("mcl_jax.bench",),
    ("mcl_jax.planning",),
    ("mcl_jax.train",),
    ("mcl_jax.loop",),
    ("mcl_jax.evaluate",),
    ("mcl_jax.program", "mcl_jax.accumulation", "mcl_jax.train_step", "mcl_jax.optimizer"),
    ("mcl_jax.objectives",),
    ("mcl_jax.runtime", "mcl_jax.report", "mcl_jax.models", "mcl_jax.views", "mcl_jax.data"),
    ("mcl_jax.montage", "mcl_jax.losses", "mcl_jax.state", "mcl_jax.sharding", "mcl_jax.keys"),
    ("mcl_jax.cli", "mcl_jax.path_flags", "mcl_jax.environment", "mcl_jax.runtime.optional"),
    ("mcl_jax.settings",),
    # what names and records mean, without any library
    (
        "mcl_jax.errors",
        "mcl_jax.exit_codes",
        "mcl_jax.models.sizes",
        "mcl_jax.data.record",
        "mcl_jax.paths",
        "mcl_jax.whole_file",
        "mcl_jax",
    ),
)
# what may use converters and configurations
INDOORS = ("convert", "configs", "commands", "api", "__main__")
ABOVE = ("mcl_jax.convert", "mcl_jax.configs")
OUTSIDE = ("convert", "configs", "scripts", "tests")  # not there once it is installed


def modules() -> dict[str, Path]:
    """Dotted name -> file of everything that is installed."""
    found = {}
    for folder in ("mcl_jax", "convert", "configs"):
        package = "mcl_jax" if folder == "mcl_jax" else f"mcl_jax.{folder}"
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *inner)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    """The number of the line of FLOORS that holds a module, by its longest name there."""
    names = {name: i for i, names in enumerate(FLOORS) for name in names}
    own = module
    while own not in names:
        own = own.rpartition(".")[0]
        assert own, f"{module} stands in no room of FLOORS"
    assert own != "mcl_jax" or module == "mcl_jax", f"{module} stands in no room of FLOORS"
    return names[own]


def imported(path: Path, *, in_functions: bool = True) -> set[str]:
    """Modules that a file imports anywhere, or only those that importing the file imports."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if in_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return found


def upward(module: str, path: Path) -> list[str]:
    """Imports of a module that go up, or out of the library."""
    if module == "mcl_jax":  # what it offers of api.py is imported when it is used
        return []
    wrong = []
    for name in imported(path):
        own = name in MODULES
        indoors = module.partition(".")[2].partition(".")[0] in INDOORS
        leaves = name.partition(".")[0] in OUTSIDE or (not indoors and name.startswith(ABOVE))
        if leaves or (own and floor(name) < floor(module)):
            wrong.append(f"{module} imports {name}")
    return wrong


def packages_of(script: Path, kit: str) -> set[str]:
    """Packages of others that a script and the room of its kit import.

    Of other rooms what importing them imports: their functions' imports are for other commands.
    """
    waiting, seen, packages = [("", script)], set(), set()
    while waiting:
        module, path = waiting.pop()
        seen.add(module)
        own = not module or module.startswith(kit)
        for name in imported(path, in_functions=own):
            parts = name.split(".")
            parents = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
            waiting += [(x, MODULES[x]) for x in parents & MODULES.keys() - seen]
            if parts[0] not in ("mcl_jax", *sys.stdlib_module_names):
                packages.add(parts[0])
    return packages


@pytest.mark.parametrize(
    "script, kit, brought",
    [
        ("finetune_torchvision", "mcl_jax.finetune", {*machine.PACKAGES, "numpy", "PIL"}),
        (
            "finetune_detectron2",
            "mcl_jax.convert.finetuning",
            {"detectron2", "torch", "numpy", "yaml"},
        ),
    ],
)
def test_a_detector_s_environment_needs_what_the_docs_install_and_no_more(script, kit, brought):
    assert packages_of(ROOT / "scripts" / f"{script}.py", kit) == brought


def test_the_docs_install_what_the_script_asks_for():
    assert f"\n{machine.INSTALL}\n" in (ROOT / "docs/transfer.md").read_text()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert upward(module, MODULES[module]) == []


def test_an_import_that_goes_up_is_found(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text("def f():\n    from mcl_jax.runtime import hosts\n")
    assert upward("mcl_jax.losses", path) == ["mcl_jax.losses imports mcl_jax.runtime"] or upward(
        "mcl_jax.losses", path
    ) == ["mcl_jax.losses imports mcl_jax.runtime.hosts"]
    path.write_text("import mcl_jax.convert.export\nfrom configs import base\n")
    assert len(upward("mcl_jax.losses", path)) == 2
    assert len(upward("mcl_jax.configs.demo", path)) == 2
    assert upward("mcl_jax.commands.main", path) == ["mcl_jax.commands.main imports configs"]


def test_every_package_is_installed():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    inits = {
        path.parent
        for top in ("mcl_jax", "convert", "configs")
        for path in (ROOT / top).rglob("__init__.py")
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in inits}
    assert sorted(listed) == sorted(
        name if name.startswith("mcl_jax") else f"mcl_jax.{name}" for name in names
    )


def test_docs_design_places_every_room_and_every_module_of_the_hall():
    section = (ROOT / "docs/design.md").read_text().partition("## 2. ")[2].partition("\nWords ")[0]
    inside = {path.stem for path in (ROOT / "mcl_jax").glob("*.py") if path.stem[0] != "_"}
    inside |= {f"{path.parent.name}/" for path in (ROOT / "mcl_jax").glob("*/__init__.py")}
    missing = [name for name in sorted(inside) if not re.search(rf"\b{name}(?:\b|`)", section)]
    assert missing == []
