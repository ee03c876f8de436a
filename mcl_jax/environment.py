"""What the environment of a command may have wrong: variables for other libraries, the current folder.

Some of it is looked at before a command begins (`prepare`), the rest when JAX complains (`mistake`).
"""

import os
import re
import subprocess
import sys
from functools import lru_cache

from mcl_jax.errors import UserError

# XLA ends the process at a flag that it does not take, so another process tries them.
_TRY_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"
_REFUSED = re.compile(r"^[EF]\d{4} [^]\n]*flags[^]\n]*\] (.*)", re.MULTILINE)
_OF_JAX = re.compile(r"environment '(JAX_\w+)'|for JAX flag (jax_\w+)")


def prepare(*, compiles: bool) -> None:
    """Checks and sets what has to be right before JAX and matplotlib are imported.

    Args:
      compiles: whether the command uses JAX.

    Raises:
      UserError: the current folder is gone, or XLA does not take $XLA_FLAGS.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder cannot be used ({error.strerror}); change to another one"
        ) from error
    # Pictures are files here, whatever a notebook around this process draws to.
    os.environ["MPLBACKEND"] = "agg"
    flags = os.environ.get("XLA_FLAGS", "")
    if compiles and flags.strip() and "jax" not in sys.modules and (why := _refusal(flags)):
        raise UserError(f"$XLA_FLAGS is {flags!r}: {why}. Correct it, or leave it unset")


@lru_cache
def _refusal(flags: str) -> str | None:
    """What XLA says of its flags before it aborts; None: it takes them."""
    process = subprocess.run(
        [sys.executable, "-c", _TRY_FLAGS],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    match = _REFUSED.search(process.stderr)
    # without a match, it is not about them
    return match[1].rstrip(".") if process.returncode and match else None


def mistake(error: Exception) -> str | None:
    """One line about a variable that an exception of JAX's comes from; None: it has other reasons."""
    if match := _OF_JAX.search(str(error)):
        name = (match[1] or match[2]).upper()
        if name in os.environ:
            return (
                f"${name} is {os.environ[name]!r}, which JAX does not take; correct it, or leave it "
                "unset"
            )
    if isinstance(error, AssertionError | RuntimeError):
        return _platform_mistake()
    return None


def _platform_mistake() -> str | None:
    """About a $JAX_PLATFORMS for which JAX finds no device; None if it finds one."""
    request = os.environ.get("JAX_PLATFORMS", "")
    if not request or "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
        return None
    except (AssertionError, RuntimeError):  # which one depends on what is installed
        jax.config.update("jax_platforms", None)
    platforms = sorted({device.platform for device in jax.devices()} | {"cpu"})
    return (
        f"JAX_PLATFORMS is {request!r}, but there is no such device here; there are "
        f"{', '.join(platforms)}. Set it to one of them, or leave it unset"
    )
