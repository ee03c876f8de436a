"""The commands that a document shows: in blocks of code, and as code in its text."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
# Programs of others, whose arguments are not looked at.
OTHERS = {
    *("cat", "cd", "cp", "curl", "docker", "do", "done", "echo", "export", "for", "gcloud"),
    *("gcsfuse", "git", "kubectl", "ls", "mim", "mkdir", "pip", "sbatch", "sh", "source", "tar"),
    *("tensorboard", "unzip", "uv", "wget", "xpk"),
}
OWN = re.compile(r"(?:\S*/)?(mcl-jax|python3?|bash)$")
# Modules of Python and of other projects; those of ours have commands.
MODULES = {"venv", "pip", "pdoc", "pytest"}
SHELL = {"quickstart.sh", "test.sh", "tpu_vm.sh", "gpu_wheels.sh"}  # of scripts/
EXAMPLES = {"ARGUMENT": "c4,loss=b", "TARGET": "torchvision"}  # of what a document leaves open
BEGINS_OWN = re.compile(r"(?:mcl-jax|python3?|bash|scripts/\w+\.(?:py|sh)) \S")
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)


class Shown(NamedTuple):
    """A command of a document.

    Attributes:
      text: its words, each as a shell would quote it, without comments and redirections.
      words: what the program gets; variables of the same block are filled in.
    """

    text: str
    words: list[str]


def commands(name: str) -> list[Shown]:
    """All commands of this project that a document shows, in order, each once.

    Args:
      name: of the document, in the repository.

    Raises:
      AssertionError: a block of bash holds a program that is neither ours nor known.
    """
    text = (REPO / name).read_text()
    found = []
    for language, block in BLOCK.findall(text):
        if language in ("", "bash"):
            found += _of_block(name, block, strict=language == "bash")
    prose = BLOCK.sub("", text)
    spans = [*re.findall(r"(?<!`)`([^`]+)`(?!`)", prose), *re.findall(r"^    (\S.*)$", prose, re.M)]
    for span in spans:
        span = " ".join(span.split())
        if BEGINS_OWN.match(span) and not re.search(r"\.\.\.|…", span):
            found += _of_block(name, span, strict=False)
    return list({shown.text: shown for shown in found}.values())


def _of_block(name: str, block: str, strict: bool) -> list[Shown]:
    found, begun, variables = [], "", {}
    for line in block.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ")
        if not strict and not begun and not BEGINS_OWN.match(line):
            continue  # what a program answers, a file, a picture
        if match := re.fullmatch(r'([A-Z]+)="?([^"]*)"?', line):
            variables[match[1]] = _filled(match[2], variables)
        try:
            words = shlex.split(_filled(f"{begun}{line}", variables), comments=True)
        except ValueError:  # a quotation that ends on a later line
            begun += f"{line}\n"
            continue
        begun = ""
        words = _without_shell(words)
        if words and words[0] not in OTHERS and not words[0].startswith(("-", "$")):
            assert OWN.match(words[0]) or not strict, f"{name}: neither ours nor known: {words}"
            found.append(Shown(shlex.join(words), words))
    return found


def _filled(line: str, variables: dict[str, str]) -> str:
    """The line with the block's own variables in it; others stay."""
    return re.sub(r"\$([A-Z]+)\b", lambda match: variables.get(match[1], match[0]), line)


def _without_shell(words: list[str]) -> list[str]:
    """The words of a command without settings of its environment and what a shell does with it."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
        words = words[1:]
    ends = [place for place, word in enumerate(words) if word in ("&", "|", ";", ">", "&&")]
    return words[: ends[0]] if ends else words


def as_command(name: str, shown: Sequence[str]) -> tuple[str, list[str]] | None:
    """What understands a command, and the arguments for it.

    Args:
      name: of the document, for messages.
      shown: the words of the command.

    Returns:
      ("mcl-jax", the command and its flags), or (stem of a script that is no command of mcl-jax, its
      flags); None for shell scripts and modules of others.

    Raises:
      AssertionError: a script or module that is not there.
    """
    program, *rest = (re.sub(r"\b[A-Z]+\b", _example, word) for word in shown)
    if program.endswith("mcl-jax"):
        return "mcl-jax", rest
    if program.endswith("bash"):
        assert (REPO / rest[0]).is_file() and Path(rest[0]).name in SHELL, f"{name}: {rest[0]}"
        return None
    path = rest.pop(0) if "python" in Path(program).name else program
    if path in ("-c", "-m"):
        module = rest.pop(0)
        assert path == "-c" or module in {"convert", "mcl_jax", *MODULES}, (
            f"{name}: no module {module}"
        )
        assert module != "pytest" or all((REPO / x).is_file() for x in rest if x[0] != "-"), name
        before = {"mcl_jax": [], "convert": ["convert"]}.get(module)
        return None if before is None else ("mcl-jax", [*before, *rest])
    assert (REPO / path).is_file(), f"{name} shows {path}, which is not there"
    if command := re.search(r'script\("(.*)"\)', (REPO / path).read_text()):
        return "mcl-jax", [*command[1].split(), *rest]
    return Path(path).stem, rest


def _example(match: re.Match) -> str:
    return EXAMPLES.get(match[0], match[0])
