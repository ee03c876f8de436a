"""`>>>` in a docstring means "is run": every such example computes what it says.

Examples that need a run or a user's files stand there without `>>>`.
"""

import doctest
import importlib
import re

import pytest
import test_api
from test_rooms import MODULES

RUN_ON_A_RUN = ("mcl_jax.api", "mcl_jax.evaluate.frozen")  # by test_api.py, with a finished run
WITH_EXAMPLES = sorted(
    name for name, path in MODULES.items() if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("name", [x for x in WITH_EXAMPLES if x not in RUN_ON_A_RUN])
def test_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0


def test_every_other_example_is_run_on_a_run():
    assert set(RUN_ON_A_RUN) < set(WITH_EXAMPLES) and len(WITH_EXAMPLES) > 12
    shown = {function.__qualname__ for function in test_api.WITH_EXAMPLES}
    for name in RUN_ON_A_RUN:
        found = doctest.DocTestFinder().find(importlib.import_module(name), "")
        assert {test.name.lstrip(".") for test in found if test.examples} <= shown


def test_an_example_that_would_not_be_run_is_found():
    """`>>>` where doctest does not look: a comment, a text that is no docstring."""
    for name in WITH_EXAMPLES:
        found = doctest.DocTestFinder().find(importlib.import_module(name))
        run = sum(len(test.examples) for test in found)
        assert run == len(re.findall(r"^ *>>> ", MODULES[name].read_text(), re.MULTILINE)), name
