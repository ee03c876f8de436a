"""The configuration of a fine-tuning in Detectron2: YAML, options, traps, and their mistakes."""

import ast

import pytest
from detectron2_kit import FPN

from mcl_jax.convert.finetuning import (
    command,
    configuration,
    ranges,
    task,
    traps,
)
from mcl_jax.errors import UserError


def check(*arguments):
    """`--check`, in this process."""
    command.run(task.parse("", [*map(str, arguments), "--check"]))


def one_line(error):
    assert "\n" not in str(error) and len(str(error)) < 500
    return str(error)


@pytest.mark.parametrize(
    "options, words",
    [
        (("SOLVER.MAX_ITR", "3"), "no key SOLVER.MAX_ITR; did you mean SOLVER.MAX_ITER?"),
        (("solver.max_iter", "3"), "did you mean SOLVER.MAX_ITER?"),
        (("MAX_ITER", "3"), "did you mean SOLVER.MAX_ITER?"),
        (("SOLVER", "3"), "it is a section"),
        (("SOLVER.MAX_ITER",), "SOLVER.MAX_ITER has no partner"),
        (("SOLVER.MAX_ITER", "3", "OUTPUT_DIR"), "OUTPUT_DIR has no partner"),
        (("SOLVER.MAX_ITER", "many"), "SOLVER.MAX_ITER must be a int, not 'many'"),
        (("SOLVER.BASE_LR", "1"), "SOLVER.BASE_LR must be a float, not 1 (int): 1.0"),
        (("MODEL.WEIGHTS", "a.pkl"), "give the file with --weights"),
        (("--num-gpus", "0"), "--num-gpus 0 must be at least 1"),
        (("--num-gpus", "two"), "argument --num-gpus: invalid int value"),
        (("--evaluate",), "unrecognized arguments: --evaluate"),
    ],
)
def test_wrong_options_are_one_line(options, words):
    with pytest.raises(UserError) as caught:
        check(FPN, "--control", "random", *options)
    assert words in one_line(caught.value)


KNOWN = configuration.known_defaults()


def outside(key):
    """Values just outside of a key's range, and of other kinds that Detectron2 would take."""
    span, several = ranges.RANGES[key], isinstance(KNOWN[key], (list, tuple))
    numbers = [-1, span.low - 1] + ([0] if span.low > 0 else []) + ([1.5] if span.high == 1 else [])
    numbers += [float("inf"), float("nan")]
    if isinstance(KNOWN[key], float):
        return [float(x) for x in numbers]
    if several:
        return [(x,) for x in numbers] + [("a",)] + ([(5, 5), (7, 5)] if span.rising else [()])
    return [x for x in numbers if x == x and abs(x) != float("inf")] + [10**13]


@pytest.mark.parametrize("key", ranges.RANGES)
def test_values_out_of_range_are_refused_and_the_ends_are_not(key):
    span, default = ranges.RANGES[key], KNOWN[key]
    for value in outside(key):
        with pytest.raises(UserError) as caught:
            ranges.demand(KNOWN | {key: value}, KNOWN)
        assert one_line(caught.value).startswith(f"{key} is {value!r}; it must be ")
    for end in (span.low, span.high, 1):
        several = isinstance(default, (list, tuple))
        ranges.demand(KNOWN | {key: (end,) if several else end}, KNOWN)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("SOLVER.MAX_ITER", "-5"), "SOLVER.MAX_ITER is -5; it must be a whole number, at least 1"),
        (
            ("SOLVER.MAX_ITER", "None"),
            "SOLVER.MAX_ITER is None; it must be a whole number, at least",
        ),
        (("SOLVER.BASE_LR", "1e999"), "SOLVER.BASE_LR is inf; it must be a number above 0"),
        (("SOLVER.MOMENTUM", "1.1"), "SOLVER.MOMENTUM is 1.1; it must be a number, from 0 to 1"),
        (
            ("SOLVER.STEPS", "(9, 5)"),
            "is (9, 5); it must be numbers, at least 1, each above the one",
        ),
        (("INPUT.MIN_SIZE_TRAIN", "()"), "is (); it must be one number or more, at least 1"),
        (("SOLVER.WARMUP_METHOD", "cosine"), "is 'cosine'; it must be one of linear, constant"),
        (("INPUT.MASK_FORMAT", "rle"), "is 'rle'; it must be one of polygon, bitmask"),
    ],
)
def test_options_out_of_range_are_one_line(options, words):
    with pytest.raises(UserError) as caught:
        check(FPN, "--control", "random", *options)
    assert words in one_line(caught.value)


def test_a_file_s_values_are_checked_as_those_of_the_options(tmp_path):
    assert ranges.RANGES.keys() | ranges.CHOICES.keys() <= KNOWN.keys()
    assert all(KNOWN[key] in choices for key, choices in ranges.CHOICES.items())
    (tmp_path / "own.yaml").write_text("VERSION: 2\nSOLVER:\n  CHECKPOINT_PERIOD: 0\n")
    with pytest.raises(UserError, match="SOLVER.CHECKPOINT_PERIOD is 0; it must be a whole number"):
        configuration.read(tmp_path / "own.yaml")
    for path in FPN.parent.glob("*.yaml"):
        configuration.read(path)


def test_options_are_read_as_detectron2_reads_them():
    given = (
        "SOLVER.STEPS",
        "[5, 7]",
        "MODEL.PIXEL_MEAN",
        "(1.0, 2.0, 3.0)",
        "OUTPUT_DIR",
        "runs/1",
    )
    settings = configuration.read(FPN, (*given, "SOLVER.MAX_ITER", "9", "SEED", "-1"))
    assert settings["SOLVER.STEPS"] == (5, 7) and settings["MODEL.PIXEL_MEAN"] == [1.0, 2.0, 3.0]
    assert settings["OUTPUT_DIR"] == "runs/1" and settings["SOLVER.MAX_ITER"] == 9
    assert set(settings) == set(configuration.known_defaults())


@pytest.mark.parametrize(
    "text, words",
    [
        ("MODEL:\n  FPN: [1\n", ", line 3: expected ',' or ']'"),
        ("MODEL:\n\tFPN: 1\n", ", line 2: found character '\\t'"),
        ("A: !!python/tuple [1]\n", ", line 1: could not determine a constructor"),
        ("MODEL:\n  MASK_ONN: True\n", "no key MODEL.MASK_ONN; did you mean MODEL.MASK_ON?"),
        ("MODEL:\n  MASK_ON: 3\n", "MODEL.MASK_ON must be a bool, not 3 (int)"),
        ("SOLVER:\n  STEPS: (1, 2\n", "SOLVER.STEPS must be a tuple, not '(1, 2' (str)"),
        ("MODEL: 3\n", "no key MODEL: it is a section"),
        ("1: 2\n", "has the key 1"),
        ("VERSION: 1\n", "has VERSION 1; write it with VERSION: 2"),
        ("_BASE_: own.yaml\n", "is its own _BASE_"),
        ("_BASE_: gone.yaml\n", "gone.yaml cannot be read: No such file"),
        ("- 1\n", "holds no keys and values"),
        ("", "holds no keys and values"),
        (b"\xff\xfe", "is not text in UTF-8"),
    ],
)
def test_files_with_mistakes_are_one_line(text, words, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        check(path, "--control", "random")
    assert words in one_line(caught.value)


def test_configurations_with_tuples_and_bases_are_read_as_detectron2_does(tmp_path):
    (tmp_path / "base.yaml").write_text("A:\n  B: (1, 2)\n  C: 3\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nA:\n  C: 4\n  D: [x]\n")
    read = configuration.read_yaml(tmp_path / "own.yaml")
    assert read == {"A": {"B": (1, 2), "C": 4, "D": ["x"]}}
    assert ast.literal_eval("(1, 2)") == read["A"]["B"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.RESNETS.STRIDE_IN_1X1", True),
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("MODEL.BACKBONE.FREEZE_AT", 2),
        ("MODEL.RESNETS.NORM", "FrozenBN"),
        ("MODEL.FPN.NORM", ""),
        ("MODEL.ROI_BOX_HEAD.NORM", ""),
        ("MODEL.ROI_BOX_HEAD.NUM_CONV", 0),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 2),
        ("MODEL.ROI_MASK_HEAD.NORM", ""),
        ("TEST.PRECISE_BN.ENABLED", False),
    ],
)
def test_every_trap_is_named(key, value):
    settings = configuration.read(FPN)
    assert traps.find(settings) == [] and settings[key] != value
    (trap,) = traps.find(settings | {key: value})
    assert trap.startswith(f"{key} is {value!r}, must be {settings[key]!r}: ")


def test_the_installed_detectron2_s_defaults_are_traps():
    settings = configuration.known_defaults()
    named = {trap.split(" is ")[0] for trap in traps.find(settings)}
    assert named == {
        "MODEL.RESNETS.STRIDE_IN_1X1",
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.RESNETS.NORM",
        "TEST.PRECISE_BN.ENABLED",
    }


def test_traps_know_what_a_file_holds():
    assert traps.holding(["stem.conv1.weight"]) == traps.Holding(True, 0, False)
    assert traps.holding(["backbone.fpn_output2.bias", "roi_heads.box_head.conv1.norm.bias"]) == (
        traps.Holding(False, 1, True)
    )
