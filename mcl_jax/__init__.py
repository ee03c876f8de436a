"""Multi-Level Contrastive Learning (Guo et al., 2023) in JAX: detection pre-training without labels."""

from pathlib import Path

__version__ = "0.2.0"

# In a checkout, installed or not, `mcl_jax.convert` and `mcl_jax.configs` are the folders beside
# this one; setup.cfg puts them inside the package where it is installed.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "setup.cfg").is_file() and (_checkout / "convert").is_dir():
    __path__.append(str(_checkout))
