"""What `mcl-jax --help` says; needs neither absl nor JAX."""

import textwrap
from collections.abc import Iterable, Iterator

import mcl_jax
from mcl_jax import exit_codes
from mcl_jax.commands.registry import COMMANDS

COLUMN = 22  # where the second column begins
WIDTH = 96


def overview() -> str:
    """`mcl-jax --help`."""
    commands = ((command.name, command.summary) for command in COMMANDS)
    codes = ((f"{code}", meaning) for code, meaning in exit_codes.MEANINGS.items())
    return "\n".join(
        [
            "usage: mcl-jax COMMAND [FLAGS]",
            "",
            f"Multi-Level Contrastive Learning in JAX, version {mcl_jax.__version__}.",
            "",
            "commands (mcl-jax COMMAND --help tells more):",
            *rows(commands),
            "",
            "exit codes:",
            *rows(codes),
            "",
            "completion:  source <(mcl-jax completion bash)   # or zsh",
        ]
    )


def rows(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Two columns; a long first column stands on a line of its own."""
    for left, right in pairs:
        lines = textwrap.wrap(" ".join(right.split()), WIDTH - COLUMN)
        head = f"  {left}"
        if len(head) >= COLUMN:
            yield head
        else:
            lines[0] = f"{head:<{COLUMN}}{lines[0]}"
        indent = " " * COLUMN
        yield from (x if x.startswith(head) else indent + x for x in lines)
