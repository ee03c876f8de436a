"""Where compiled programs are kept between runs."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place


@contextlib.contextmanager
def compile_cache(folder: Place) -> Iterator[None]:
    """Keeps compiled programs in `folder`, as long as the context is open.

    A cache that is set already stays: $JAX_COMPILATION_CACHE_DIR says where, or a caller did. JAX
    has one cache a process, so this is for the program's main thread.

    Example:
      with compile_cache(workdir / "xla_cache"):
          compiled = program.lower_step(run).compile()
    """
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(storage.absolute(folder)))
    compilation_cache.reset_cache()  # JAX opens the cache at the first compilation, once
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
