"""Values are called by nouns, and calls say what their arguments are."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("mcl_jax", "convert", "configs", "scripts")
# adverbs and participles: they do not say what the value is
NO_NOUNS = {
    *("asked", "at", "found", "given", "here", "kept", "known", "left", "made", "needed", "said"),
    *("seen", "shown", "taken", "there", "told", "used", "wanted", "whole"),
}
SIDES = {"right", "top"}  # beside them, `left` is a side
MOST_POSITIONAL = 4
TABLES = {"Chip", "Row"}  # records that stand in a table, under the titles of its columns


def sources() -> dict[Path, ast.Module]:
    paths = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def stored(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of all variables and arguments below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def no_nouns(tree: ast.Module) -> set[tuple[str, int]]:
    """(name, line) of those that are no nouns."""
    sides = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = set(stored(node))
            if SIDES & {name for name, _ in names}:
                sides |= {(name, line) for name, line in names if name == "left"}
    return {(name, line) for name, line in stored(tree) if name in NO_NOUNS} - sides


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    above = () if parts[0] == "mcl_jax" else ("mcl_jax",)
    return ".".join(above + parts).removesuffix(".__init__")


def definitions(trees: dict[Path, ast.Module]) -> dict[str, ast.AST]:
    """Dotted name -> function or class, of those at the top of a module."""
    return {
        f"{module_of(path)}.{node.name}": node
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def called(function: ast.expr, imports: dict[str, str]) -> str:
    """The dotted name of what is called; '' where it is no import and no function of the module."""
    if isinstance(function, ast.Name):
        return imports.get(function.id, "")
    if isinstance(function, ast.Attribute) and (owner := called(function.value, imports)):
        return f"{owner}.{function.attr}"
    return ""


def own_calls(path: Path, tree: ast.Module, own: dict[str, ast.AST]) -> Iterator[ast.Call]:
    """Calls of the project's functions and records."""
    imports = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    module = module_of(path)
    imports |= {
        node.name: f"{module}.{node.name}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node.func, imports) in own:
            definition = own[called(node.func, imports)]
            variadic = isinstance(definition, ast.FunctionDef) and definition.args.vararg
            if definition.name not in TABLES and not variadic:
                yield node


def unclear(call: ast.Call) -> str:
    """What its positional arguments leave open; '' if nothing."""
    for argument in call.args:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, (bool, type(None))):
            return f"{argument.value} without a keyword"
    return f"{len(call.args)} without keywords" if len(call.args) > MOST_POSITIONAL else ""


def positional_booleans(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(argument, line) of functions' booleans that a call may give without their name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for argument in node.args.args:
                if argument.annotation is not None and ast.unparse(argument.annotation) == "bool":
                    yield f"{node.name}({argument.arg})", argument.lineno


def test_values_are_called_by_nouns():
    for path, tree in sources().items():
        assert not no_nouns(tree), path


def test_calls_say_what_their_arguments_are():
    trees = sources()
    own = definitions(trees)
    calls = [(path, call) for path, tree in trees.items() for call in own_calls(path, tree, own)]
    assert len(calls) > 1000
    for path, call in calls:
        assert not unclear(call), f"{path}:{call.lineno}: {ast.unparse(call)}"


def test_booleans_have_their_names_at_calls():
    for path, tree in sources().items():
        assert not list(positional_booleans(tree)), path


def test_the_rules_find_what_they_are_for():
    code = "def f(given, left): return f(1, True)\ndef g(left, right, wide: bool): pass\n"
    code += "f(1, 2, 3, 4, 5)\nf(1, 2, 3, 4, wide=True)\n"
    tree = ast.parse(code)
    path = ROOT / "mcl_jax" / "example.py"
    assert no_nouns(tree) == {("given", 1), ("left", 1)}
    assert list(positional_booleans(tree)) == [("g(wide)", 2)]
    calls = own_calls(path, tree, definitions({path: tree}))
    assert sorted(map(unclear, calls)) == ["", "5 without keywords", "True without a keyword"]
