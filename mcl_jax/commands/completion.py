"""Prints what makes a shell complete mcl-jax's commands and flags:

    source <(mcl-jax completion bash)     # in ~/.bashrc
    source <(mcl-jax completion zsh)      # in ~/.zshrc, behind compinit

The shell asks `mcl-jax completion words COMMAND` for the flags of a command.
"""

import argparse
import re

from mcl_jax import cli
from mcl_jax.commands import flag_help, registry
from mcl_jax.errors import UserError

BASH = """_mcl_jax() {
  local line=("${COMP_WORDS[@]:1:COMP_CWORD-1}") current=${COMP_WORDS[COMP_CWORD]}
  if [[ $current == -* || ${#line[@]} -lt 2 ]]; then
    COMPREPLY=($(compgen -W "$(mcl-jax completion words "${line[@]}" 2>/dev/null)" -- "$current"))
  fi
  [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
}
complete -o default -F _mcl_jax mcl-jax
"""
ZSH = """_mcl_jax() {
  local -a found
  found=(${(f)"$(mcl-jax completion words "${(@)words[2,CURRENT-1]}" 2>/dev/null)"})
  if [[ ${words[CURRENT]} == -* || $CURRENT -lt 4 && ${#found} -gt 0 ]]; then
    compadd -S '' -- $found
  else
    _files
  fi
}
compdef _mcl_jax mcl-jax
"""
COMPILES = False  # asked at every Tab
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def parser(program: str) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=("bash", "zsh", "words"))
    parser.add_argument("line", nargs=argparse.REMAINDER, help="of `words`: what was typed so far")
    return parser


def main(options: argparse.Namespace) -> None:
    if options.shell == "words":
        print("\n".join(choices(options.line)))
    else:
        print({"bash": BASH, "zsh": ZSH}[options.shell], end="")


def choices(line: list[str]) -> list[str]:
    """What may follow: the first words of commands, a group's second ones, or a command's flags."""
    names = [command.name.split() for command in registry.COMMANDS]
    if not line:
        return list(dict.fromkeys(name[0] for name in names))
    try:
        command, _ = registry.find(line)
    except UserError:
        return [name[1] for name in names if len(name) > 1 and name[0] == line[0]]
    module = command.module()
    if not hasattr(module, "parser"):
        return [shown(flag) for flag in flag_help.own_flags(module)]
    return sorted(set(_FLAG.findall(module.parser("").format_help())))


def shown(flag) -> str:
    return f"--{flag.name}" if flag.flag_type() == "bool" else f"--{flag.name}="
