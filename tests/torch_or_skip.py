"""torch for the tests. Where it is not installed, what uses it skips, all for one reason in one line.

    from torch_or_skip import torch                              # skips at the first use
    torch_mcl = module_on_torch("mcl_jax.bench.torch_mcl")       # skips the whole file
    need_torch()                                                 # before the package uses torch

A plain `import torch` in a test would fail there. That is right for the package itself: what a user
runs without torch must not need it, so a missing torch is never turned into a skip from outside.
"""

import importlib
from types import ModuleType

import pytest


class _Missing:
    """Stands where torch would: any use of it skips."""

    def __getattr__(self, name: str):
        if name.startswith("_"):  # Python and pytest ask every object for these
            raise AttributeError(name)
        pytest.skip("torch is not installed", allow_module_level=True)


try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = _Missing()


def need_torch() -> None:
    """Skips the test that runs, or the file that is being imported, unless torch is installed."""
    torch.Tensor  # noqa: B018 - looked up for what a missing torch does then


def module_on_torch(name: str) -> ModuleType:
    """The module `name`, which imports torch at its top."""
    need_torch()
    return importlib.import_module(name)
