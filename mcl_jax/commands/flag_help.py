"""What `mcl-jax COMMAND --help` says, for a command with absl flags."""

from collections.abc import Iterator
from types import ModuleType

from absl import flags

from mcl_jax.commands.words import rows

CONFIG_MODULE = "mcl_jax.cli"  # where --config is defined for all
VALUES = {"int": "N", "float": "NUMBER", "string": "TEXT"}


def of_command(program: str, module: ModuleType) -> str:
    """`mcl-jax COMMAND --help`, for a command with absl flags."""
    pairs = [(_shown(flag), _meaning(flag)) for flag in own_flags(module)]
    return "\n".join(
        [f"usage: {program} [FLAGS]", "", module.__doc__.strip(), "", "flags:", *rows(pairs)]
    )


def own_flags(module: ModuleType) -> Iterator[flags.Flag]:
    """A command's flags in the order in which they are defined, --config first."""
    by_module = flags.FLAGS.flags_by_module_dict()
    for name in (CONFIG_MODULE, module.__name__):
        yield from by_module.get(name, ())


def _shown(flag: flags.Flag) -> str:
    kind = flag.flag_type()
    if kind == "bool":
        return f"--{flag.name}"
    if kind == "string enum":
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    value = VALUES.get(kind.removeprefix("multi "), "A,B,..." if "comma" in kind else "FILE")
    return f"--{flag.name}={value}"


def _meaning(flag: flags.Flag) -> str:
    if flag.name == "config":
        return (
            "a name of mcl_jax/configs (demo, mcl:c4,loss=b) or a file; any key of it can be set, "
            "e.g. --config.optimizer.epochs=200"
        )
    text = flag.default_as_str  # quoted text; None for flags without one
    default = f" (default: {text.strip(chr(39))})" if flag.default not in (None, "", []) else ""
    return f"{flag.help}{default if flag.flag_type() != 'bool' else ''}"
