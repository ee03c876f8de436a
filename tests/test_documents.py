"""Every command that a document shows is one that there is, with flags that parse."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags

from mcl_jax import cli
from mcl_jax.commands import main, registry
from mcl_jax.configs import path_of

# ml_collections' own way to run a file
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPO = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "configs/README.md", *(f"docs/{p.name}" for p in REPO.glob("docs/*.md"))]
# Programs of others, whose arguments are not looked at.
OTHERS = {
    *(
        "cat",
        "cd",
        "cp",
        "curl",
        "docker",
        "done",
        "echo",
        "export",
        "for",
        "gcloud",
        "git",
        "kubectl",
    ),
    *("mkdir", "pip", "sbatch", "sh", "source", "tar", "unzip", "uv", "wget", "xpk", "do", "ls"),
    *("gcsfuse", "tensorboard"),
}
OWN = re.compile(r"(?:\S*/)?(mcl-jax|python3?|bash)$")


def blocks(name):
    """Words of every command in a document's bash blocks; continued lines are one command."""
    text = (REPO / name).read_text()
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.M | re.S):
        begun = ""
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(f"{begun}{line}", comments=True)
            except ValueError:  # a quotation that ends on a later line
                begun += f"{line}\n"
                continue
            begun = ""
            yield words


def commands(name):
    """Command lines of mcl-jax that a document shows, as lists of words."""
    found = []
    for words in blocks(name):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
            words = words[1:]
        if not words or words[0] in OTHERS or words[0].startswith(("-", "$")):
            continue
        match = OWN.match(words[0])
        assert match, f"{name}: {words[0]!r} is neither ours nor known: {words}"
        words = [w for w in words if w not in ("&", "|", ";")]
        if match[1] == "mcl-jax":
            found.append(words[1:])
        elif words[1].startswith("scripts/") or words[1] == "-m":
            found += as_command(name, words)
    return found


def as_command(name, words):
    """A script's or a module's command line as one of mcl-jax; none for what stays a script."""
    if words[1] == "-m":
        return [["convert", *words[3:]]] if words[2] == "convert" else []
    path = REPO / words[1]
    assert path.is_file(), f"{name} shows {words[1]}, which is not there"
    command = re.search(r'script\("(.*)"\)', path.read_text())
    return [[*command[1].split(), *words[2:]]] if command else []


@pytest.fixture
def parse():
    """A function that parses a command line as mcl-jax does, without doing anything."""
    before = sys.argv

    def parse(words):
        forget()
        command, arguments = registry.find(words)
        module = command.module()
        sys.argv = [f"mcl-jax {command.name}", *main._with_config_files(arguments)]
        if hasattr(module, "parser"):
            module.parser("mcl-jax").parse_args(sys.argv[1:])
        else:
            assert cli._parse(sys.argv)[1:] == []

    def forget():
        by_module = flags.FLAGS.flags_by_module_dict()
        for name in [m for m in by_module if m.startswith("mcl_jax.")]:
            for flag in list(by_module[name]):
                delattr(flags.FLAGS, flag.name)
            if name.startswith("mcl_jax.commands."):
                sys.modules.pop(name, None)
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        sys.modules.pop("config_config", None)

    yield parse
    forget()
    sys.argv = before
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_shows_parses(name, parse, capsys):
    for words in commands(name):
        if words[0].startswith("-") or "--help" in words:
            continue
        try:
            parse(words)
        except SystemExit:
            pytest.fail(f"{name}: mcl-jax {' '.join(words)}: {capsys.readouterr().err}")


def test_the_readme_shows_commands():
    shown = {words[0] for words in commands("README.md")}
    assert {"pretrain", "knn", "convert", "prepare", "visualize"} <= shown
    assert sum(len(commands(name)) for name in DOCUMENTS) >= 25


def test_a_wrong_command_in_a_document_is_found(parse, capsys):
    for line in ("knn --wrkdir=x", "pretrain --config demo --config.data.batchsize=3"):
        with pytest.raises(SystemExit):
            parse(line.split())
    with pytest.raises(SystemExit):
        parse(["convert", "x", "--to", "nowhere", "--out", "y"])


def test_python_blocks_use_names_and_keys_that_there_are():
    import ast

    import mcl_jax
    from mcl_jax.settings import door

    text = (REPO / "docs/python.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "mcl_jax"
    }
    assert used == {"load_config", "pretrain", "load", "export"} <= set(mcl_jax.__all__)
    for key in re.findall(r"`((?:log|export)\.\w+)", text):
        door.check_name(key)
    assert Path(path_of("mcl")).is_file()
