"""Calls of Detectron2 and fvcore fit the signatures of the real ones (tests/detectron2_calls.py)."""

import ast
import json

import detectron2_calls
import pytest
from detectron2_calls import EVALUATORS, OVERRIDDEN, SOURCES, as_signature, mistake

SIGNATURES = json.loads(detectron2_calls.LIST.read_text())["signatures"]
CALLS = list(detectron2_calls.calls())


def test_the_list_holds_what_is_called():
    assert set(SIGNATURES) == set(detectron2_calls.wanted())
    assert detectron2_calls.unknown() == []
    assert len(CALLS) > 20


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.place)
def test_a_call_fits_the_real_signature(call):
    assert mistake(call.node, SIGNATURES[call.target]) is None


def test_evaluators_are_all_called_as_they_want_it():
    names = [f"detectron2.evaluation.{name}" for name in EVALUATORS]
    shapes = {
        len(call.node.keywords): call.node for call in CALLS if call.place.endswith(": build")
    }
    assert set(shapes) == {0, 1}
    assert all(mistake(shapes[0], SIGNATURES[name]) is None for name in names)
    for name in names:  # only those of COCO and LVIS take the folder
        assert (mistake(shapes[1], SIGNATURES[name]) is None) == (
            name.split(".")[-1][:4] in ("COCO", "LVIS")
        )


@pytest.mark.parametrize("own, real", OVERRIDDEN.items())
def test_what_detectron2_calls_of_ours_takes_what_it_gives(own, real):
    """Every parameter that the overridden one has, in order."""
    owner, name = own.split(".")
    functions = [
        function
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == owner
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == name
    ]
    (function,) = functions
    ours = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
    theirs = [row[0] for row in SIGNATURES[real] if row[1] == "POSITIONAL_OR_KEYWORD"]
    assert ours[: len(theirs)] == theirs or name == "__init__"
    assert len(ours) - len(function.args.defaults) <= max(len(theirs), 2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("c.resume_or_load(path, resume)", "too many positional arguments"),
        ("c.resume_or_load(path, restore=True)", "unexpected keyword argument 'restore'"),
        ("c.resume_or_load()", "missing a required argument: 'path'"),
    ],
)
def test_a_call_that_does_not_fit_is_found(text, words):
    """The first of them ended every --eval-only in a TypeError."""
    rows = SIGNATURES["detectron2.checkpoint.DetectionCheckpointer.resume_or_load"]
    assert as_signature(rows).parameters["resume"].kind.name == "KEYWORD_ONLY"
    assert words in mistake(ast.parse(text, mode="eval").body, rows)
