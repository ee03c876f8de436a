"""Where compiled programs are kept between runs."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mcl_jax.runtime import storage
from mcl_jax.runtime.optional import tell
from mcl_jax.runtime.storage import Place

_XLA = "jax_persistent_cache_enable_xla_caches"
_LEAST_S = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def compile_cache(folder: Place) -> Iterator[None]:
    """Keeps compiled programs in `folder`, as long as the context is open.

    A cache that is set already stays: $JAX_COMPILATION_CACHE_DIR says where, or a caller did. JAX
    has one cache a process, so this is for the program's main thread. A cache that cannot be read
    or written costs time alone, and is told once.

    Example:
      with compile_cache(workdir / "xla_cache"):
          compiled = program.lower_step(run).compile()
    """
    preset_folder = jax.config.jax_compilation_cache_dir
    xla, least_s = getattr(jax.config, _XLA), getattr(jax.config, _LEAST_S)
    show, warnings.showwarning = warnings.showwarning, _show
    try:
        if not preset_folder:
            place = storage.absolute(folder)
            if storage.renames(place):
                _use(str(place), xla, least_s=0.0)  # dozens of small programs cost seconds
            else:  # a bucket: XLA writes to disks alone, and a request takes as long as they do
                _use(str(place), "none", least_s=least_s)
        yield
    finally:
        warnings.showwarning = show
        if not preset_folder:
            _use(folder=None, xla=xla, least_s=least_s)


def variables(folder: Path) -> dict[str, str]:
    """Of a process that keeps its programs in a folder on a disk; small ones too, as in a workdir."""
    least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return least | {"JAX_COMPILATION_CACHE_DIR": str(folder)}


_show_others = warnings.showwarning


def _show(message: Warning, *more, **also) -> None:
    """JAX warns of every program that it could not read from the cache or write to it."""
    if "persistent compilation cache" in str(message):
        tell("the compile cache", message)
    else:
        _show_others(message, *more, **also)


def _use(folder: str | None, xla: str | None, least_s: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update(_XLA, xla)
    jax.config.update(_LEAST_S, least_s)
    compilation_cache.reset_cache()  # JAX opens the cache at the first compilation, once
