"""What comments and docstrings refer to is there: sections of docs/design.md, files, names."""

import re
from pathlib import Path

import pytest
from shown_commands import REPO

from mcl_jax.settings.keys import KEYS

FOLDERS = ("mcl_jax", "convert", "configs", "scripts", "tests")
SOURCES = [path for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py"))]
MODULES = {path.stem for path in SOURCES}
# Detectron2's, an export's, and what stands for a file of the user's
FILES_ELSEWHERE = ("tools/train_net.py", "load_torchvision.py", "own/config.py", "configs/NAME.py")
FILES_ELSEWHERE += ("demo.py",)
# without CHANGELOG.md: older versions had scripts alone
WORDS = ["README.md", "CONTRIBUTING.md", "configs/README.md"]
WORDS += [str(path.relative_to(REPO)) for path in REPO.glob("docs/*.md")]
WORDS += [name for name in map(str, (x.relative_to(REPO) for x in SOURCES)) if name[:5] != "tests"]
# where it is said that a checkout has other names too
OTHER_NAMES = {
    "README.md": ["scripts/pretrain.py"],
    "docs/commands.md": ["scripts/pretrain.py"],
    "docs/convert.md": ["python -m convert"],
    "convert/__main__.py": ["python -m convert"],
    "convert/arguments.py": ["python -m convert"],
    "scripts/quickstart.py": ["scripts/pretrain.py", "scripts/summary.py"],
}
KEYS_ELSEWHERE = ("study.seeds",)  # of the studies' own configurations


def wrong_sections(text):
    """References to sections of docs/design.md, as 'design section 3, Views', that it does not have."""
    design = (REPO / "docs/design.md").read_text()
    bodies = dict(re.findall(r"^## (\d)\. (.*?)(?=^## |\Z)", design, flags=re.M | re.S))
    reference = r"[Dd]esign(?:\.md)?\s+(?:#\s+)?(?:section\s+|§)(\d+)(?:, ([A-Z]\w+))?"
    return [
        (number, part)
        for number, part in re.findall(reference, text)
        if number not in bodies or (part and f"**{part}" not in bodies[number])
    ]


def missing_files(text, folder):
    """Python files that a text names, and that are neither in its folder nor in one that all know."""
    known = [folder, folder.parent, REPO, REPO / "mcl_jax", REPO / "scripts"]
    named = re.findall(r"(?<![\w/.*{}-])((?:\w+/)*\w+\.py)\b", text)
    return [
        name
        for name in named
        if name not in FILES_ELSEWHERE and not any((place / name).is_file() for place in known)
    ]


def missing_names(text):
    """`module.name` in a text where no module of that name has it (a key of the configuration may)."""
    wrong = []
    for dotted in re.findall(r"(?<!`)`((?:[a-z_]+\.)+\w+)(?:\([^`]*\))?`(?!`)", text):
        module, name = dotted.split(".")[-2:]
        files = [path for path in SOURCES if path.stem == module]
        defines = re.compile(
            rf"^ *(?:def|class) {name}\b|^{name}\b.*=|^(?:from|import) .*\b{name}\b", re.MULTILINE
        )
        known = dotted in (*KEYS, *KEYS_ELSEWHERE) or name in (*MODULES, "py", "md")
        if files and not known and not any(defines.search(path.read_text()) for path in files):
            wrong.append(dotted)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_references_lead_somewhere(path):
    text = path.read_text()
    if path.name != Path(__file__).name:
        assert wrong_sections(text) == [] and "design §" not in text
    if path.is_relative_to(REPO / "tests") or path.parent.name == "openmmlab":
        return
    assert missing_files(text, path.parent) == [] and missing_names(text) == []


def other_names(text):
    """Scripts that are commands of mcl-jax, named as scripts; `python -m convert`."""
    named = re.findall(r"(?<!\.\./)scripts/\w+\.py", text)
    scripts = {x for x in named if 'script("' in (REPO / x).read_text()}
    return sorted(scripts | set(re.findall(r"python -m convert", text)))


@pytest.mark.parametrize("name", WORDS)
def test_a_command_has_one_name(name):
    assert other_names((REPO / name).read_text()) == OTHER_NAMES.get(name, [])


def test_a_reference_that_leads_nowhere_is_found():
    text = "see design section 9 and Design section 3, Wiews, not design\n# section 3, Loss"
    assert wrong_sections(text) == [("9", ""), ("3", "Wiews")]
    folder = REPO / "mcl_jax/evaluate/linear"
    assert missing_files("linear.py, loop.py, linear/loop.py, train.py", folder) == ["linear.py"]
    names = "`losses.nothing`, `losses.unit_rows(x)`, `knn.chunk_size`, `knn.shrinks`, `np.zeros`"
    assert missing_names(names) == ["losses.nothing", "knn.chunk_size"]
