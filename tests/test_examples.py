"""The examples in docstrings that need no data compute what they say."""

import doctest
import importlib

import pytest

MODULES = ("losses", "montage", "keys", "data.loader_settings")


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    module = importlib.import_module(f"mcl_jax.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0
