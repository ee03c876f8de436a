"""Every command that a document shows is one that there is, with flags that parse."""

import re
import sys
from pathlib import Path

import command_line
import pytest
import shown_commands
from absl import flags
from shown_commands import REPO

from mcl_jax import cli
from mcl_jax.commands import main, registry
from mcl_jax.configs import path_of
from mcl_jax.convert.finetuning.task import parse as flags_of_detectron2
from mcl_jax.finetune.flags import parse as flags_of_torchvision
from mcl_jax.settings import door

DOCUMENTS = ["README.md", "configs/README.md", *(f"docs/{p.name}" for p in REPO.glob("docs/*.md"))]
PARSERS = {"finetune_torchvision": flags_of_torchvision, "finetune_detectron2": flags_of_detectron2}


def is_mention(words):
    """Whether a text names a command, and shows no use of it: `mcl-jax knn`, `mcl-jax --help`."""
    return not words or "--help" in words or registry.find(words)[1] in ([], ["..."])


@pytest.fixture
def parse():
    """A function that parses a command line as mcl-jax does, without doing anything."""
    before = sys.argv

    def parse(words):
        command_line.forget()
        command, arguments = registry.find(words)
        module = command.module()
        sys.argv = [f"mcl-jax {command.name}", *main._with_config_files(arguments)]
        if hasattr(module, "parser"):
            module.parser("mcl-jax").parse_args(sys.argv[1:])
        else:
            assert cli._parse(sys.argv)[1:] == []

    yield parse
    command_line.forget()
    sys.argv = before
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_shows_parses(name, parse, capsys):
    for shown in shown_commands.commands(name):
        if (found := shown_commands.as_command(name, shown.words)) is None:
            continue
        parser, words = found
        if parser != "mcl-jax":
            PARSERS[parser]("", words)
        elif not is_mention(words):
            try:
                parse(words)
            except SystemExit:
                pytest.fail(f"{name}: mcl-jax {' '.join(words)}: {capsys.readouterr().err}")


def test_the_documents_show_commands():
    shown = {name: shown_commands.commands(name) for name in DOCUMENTS}
    assert len(shown["README.md"]) >= 20 and sum(map(len, shown.values())) >= 80
    texts = [command.text for command in shown["docs/transfer.md"]]
    assert any("finetune_torchvision.py" in x and "--min_sizes 128,144" in x for x in texts)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_keys_and_files_that_a_document_names_are_there(name):
    text = (REPO / name).read_text()
    for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z0-9_]+)*)", text):
        door.check_name(key)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (REPO / name).parent.joinpath(link).exists(), f"{name}: {link}"
    own = r"(?<![\w./-])((?:scripts|docs|tests|mcl_jax|convert|configs)/[\w/]+\.(?:py|md|sh|yaml|ipynb))"
    for path in set(re.findall(own, text)):
        assert (REPO / path).is_file(), f"{name}: {path}"


def test_a_wrong_command_in_a_document_is_found(parse, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(shown_commands, "REPO", tmp_path)
    (tmp_path / "a.md").write_text("```bash\nmcl_jax knn\n```\n")
    with pytest.raises(AssertionError, match="neither ours nor known"):
        shown_commands.commands("a.md")
    (tmp_path / "a.md").write_text("`python scripts/nothing.py --x` and `python -m nothing --x`")
    for shown in shown_commands.commands("a.md"):
        with pytest.raises(AssertionError, match="nothing"):
            shown_commands.as_command("a.md", shown.words)
    for line in ("knn --wrkdir=x", "pretrain --config demo --config.data.batchsize=3"):
        with pytest.raises(SystemExit):
            parse(line.split())
    with pytest.raises(SystemExit):
        parse(["convert", "x", "--to", "nowhere", "--out", "y"])


def test_python_blocks_use_names_and_keys_that_there_are():
    import ast

    import mcl_jax

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
