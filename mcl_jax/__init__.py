"""Multi-Level Contrastive Learning (Guo et al., 2023) in JAX: detection pre-training without labels."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcl_jax.api import FrozenNetwork, UserError, export, load, load_config, pretrain

__version__ = "0.2.0"
__all__ = ["FrozenNetwork", "UserError", "export", "load", "load_config", "pretrain"]

# In a checkout, installed or not, `mcl_jax.convert` and `mcl_jax.configs` are the folders beside
# this one; setup.cfg puts them inside the package where it is installed.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "setup.cfg").is_file() and (_checkout / "convert").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """What api.py offers, imported when it is used: `import mcl_jax` alone takes no JAX."""
    if name in __all__:
        return getattr(import_module("mcl_jax.api"), name)
    raise AttributeError(f"module 'mcl_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
