"""setup.cfg admits the versions that the tests run on, and what is deprecated there is an error."""

import configparser
import re
import sys
import warnings
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPO = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(REPO / "setup.cfg")
    return parser


def test_the_pythons_that_were_run_are_admitted_and_no_others(setup):
    listed = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    admitted = SpecifierSet(setup["options"]["python_requires"])
    assert listed == [f"3.{n}" for n in range(100) if f"3.{n}.1" in admitted]
    assert PYTHON in listed
    # the scripts that make an environment look for the same ones
    script = (REPO / "scripts/environment.sh").read_text()
    assert set(re.findall(r"python(3\.\d+)", script)) == set(listed)
    first, last = (int(v.partition(".")[2]) for v in (listed[0], listed[-1]))
    assert f"(3, {first}) <= sys.version_info < (3, {last + 1})" in script


def test_the_installed_jax_is_admitted_and_the_next_is_not():
    parsed = (Requirement(text) for text in requires("mcl_jax"))
    (jax,) = (
        r
        for r in parsed
        if r.name == "jax" and not r.extras and (not r.marker or r.marker.evaluate({"extra": ""}))
    )
    assert version("jax") in jax.specifier
    assert not any(v in jax.specifier for v in ("0.9.2", "0.12.0", "1.0.0"))


@pytest.mark.parametrize(
    "category",
    [
        DeprecationWarning,
        PendingDeprecationWarning,
        FutureWarning,
        np.exceptions.VisibleDeprecationWarning,
    ],
)
def test_what_is_deprecated_is_an_error_here(category):
    with pytest.raises(category, match="gone soon"):
        warnings.warn("gone soon", category, stacklevel=1)


@pytest.mark.parametrize(
    ("module", "is_error"),
    [
        ("jax._src.deprecations", True),
        ("flax.linen", True),
        ("optax.losses", True),
        ("orbax.checkpoint", True),
        ("grain.python", True),
        ("mcl_jax.train", True),
        ("matplotlib.pyplot", False),
        ("torch.nn", False),
        ("torch_detectors", True),
    ],
)
def test_only_other_libraries_may_use_what_is_deprecated(module, is_error):
    with warnings.catch_warnings(record=True) as messages:  # keeps the filters
        try:
            warnings.warn_explicit("soon", DeprecationWarning, "code.py", 1, module, registry={})
        except DeprecationWarning:
            assert is_error
        else:
            assert not is_error and len(messages) == 1
