"""import mcl_jax: what its docstrings show is run, on one tiny run; so is what they promise."""

import doctest
import signal
from pathlib import Path

import numpy as np
import pytest

import mcl_jax
from mcl_jax import api, sharding
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.errors import UserError
from mcl_jax.evaluate import frozen, monitor
from mcl_jax.runtime import checkpoint
from mcl_jax.settings.keys import EXPORTS

REPO = Path(__file__).resolve().parent.parent
TINY = {
    "data.dataset": "scenes",
    "split": "train[:64]",
    "batch_size": 32,
    "data.image_size": 32,
    "canvas_size": 32,
    "data.threads": 1,
    "backbone": "resnet10",
    "width": 4,
    "fpn_channels": 8,
    "head_convs": 1,
    "projector_hidden": 16,
    "projector_out": 8,
    "predictor_hidden": 16,
    "levels": 2,
    "epochs": 1.0,
    "warmup_epochs": 0.5,
    "montages": 0,
    "every_steps": 1,
    "knn.every_epochs": 0.0,
    "targets": ("safetensors", "detectron2"),
}
# `pretrain`'s makes the run of the others
WITH_EXAMPLES = (
    *(mcl_jax.pretrain, mcl_jax.load_config, mcl_jax.load, mcl_jax.export),
    frozen.FrozenNetwork.features,
)


def show(function, **names):
    """Runs a docstring's example; what its names mean afterwards."""
    names |= {"mcl_jax": mcl_jax, "np": np, "tiny": TINY}
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(function, function.__name__, globs=names)
    assert test.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0
    return test.globs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder, and the loss of every callback: the example of `pretrain`."""
    workdir = tmp_path_factory.mktemp("api") / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    shown = show(mcl_jax.pretrain, workdir=workdir)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert int(shown["state"].step) == 2
    return workdir, shown["losses"]


@pytest.fixture(scope="module")
def network(run):
    return mcl_jax.load(run[0])


@pytest.mark.parametrize("function", [x for x in WITH_EXAMPLES if x is not mcl_jax.pretrain])
def test_examples_in_docstrings(function, run, tmp_path):
    show(function, workdir=run[0], out=tmp_path / "out")


def test_a_run_calls_back_and_leaves_its_exports(run):
    workdir, losses = run
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert list((workdir / "exports/detectron2").glob("*.pkl"))
    (weights,) = (workdir / "exports/safetensors").glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    again = mcl_jax.pretrain(mcl_jax.load_config("demo", **TINY), workdir)
    assert int(again.step) == 2 and weights.stat().st_mtime_ns == before
    assert set(EXPORTS) == set(TARGETS)


def expected(workdir, images):
    """The encoder's own maps of normalized images, on one device."""
    state, meta = checkpoint.read(workdir)
    variables = {k: monitor.read_parts(state[k]) for k in ("params", "batch_stats")}
    augment = meta["config"]["augment"]
    views = (images - np.asarray(augment["mean"])) / np.asarray(augment["std"])
    encoder = monitor.encoder_of(meta["config"])
    return encoder.apply(variables, np.asarray(views, np.float32), method="features")


def test_features_are_the_encoders_for_any_number_and_size_of_images(run, network):
    images = np.random.default_rng(0).integers(0, 256, (11, 64, 96, 3), dtype=np.uint8)
    maps = network.features(images, batch_size=8)  # 8 devices: two batches, the last one filled up
    assert sharding.make_mesh().size == 8 and network.names[:4] == frozen.STAGES
    assert tuple(maps) == network.names == (*frozen.STAGES, "P4", "P5")
    true = expected(run[0], images / 255)
    for name, stride in zip(maps, (4, 8, 16, 32, 16, 32), strict=True):
        assert maps[name].dtype == np.float32
        assert maps[name].shape[:3] == (11, 64 // stride, 96 // stride)
        np.testing.assert_allclose(maps[name], true[name], rtol=1e-4, atol=1e-4)
    floats = network.features(images[:8].astype(np.float64) / 255, batch_size=8)
    np.testing.assert_allclose(floats["P5"], maps["P5"][:8], rtol=1e-4, atol=1e-5)
    assert network.features(images[:0], batch_size=8)["res5"].shape[:3] == (0, 2, 3)
    assert "mcl, resnet10, step 2" in repr(network)


def test_files_hold_the_same_network(run, network):
    images = np.random.default_rng(1).random((8, 64, 96, 3), np.float32)
    maps = network.features(images)
    for kind, origin in (("safetensors", None), ("detectron2", None)):
        (path,) = [p for p in (run[0] / "exports" / kind).iterdir() if p.suffix in api.FORMATS]
        loaded = mcl_jax.load(path, origin=origin).features(images)
        for name, x in maps.items():
            np.testing.assert_allclose(loaded[name], x, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="whose names has it"):
        path = run[0] / "config.json"
        mcl_jax.load(path)


def test_exports_that_cannot_be_are_refused_before_training(tmp_path):
    config = mcl_jax.load_config("mcl:swin_t", targets=("detectron2",))
    with pytest.raises(UserError, match="(?i)swin"):
        mcl_jax.pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 64, 64), np.uint8), r"images have the shape \(2, 64, 64\); it must be"),
        (np.zeros((2, 64, 60, 3), np.uint8), "images are 64 x 60 px; both must be multiples of 32"),
        (np.zeros((2, 64, 64, 3), np.int32), "images are int32; they must be uint8"),
        ([np.zeros((32, 32, 3)), np.zeros((32, 64, 3))], "images differ in size; resize them"),
        (np.full((1, 32, 32, 3), 255.0), "reach from 255 to 255; they must lie in"),
        (np.full((1, 32, 32, 3), np.nan), "must lie in"),
    ],
)
def test_wrong_images_are_named(network, images, message):
    with pytest.raises(UserError, match=message):
        network.features(images)


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("nosuch", {}, r"no configuration 'nosuch'\. There are base, demo"),
        ("nosuch.py", {}, "--config 'nosuch.py' does not exist"),
        ("demo", {"batch_sise": 1}, "no key batch_sise; did you mean"),
        ("demo", {"temperature": 1.0}, "temperature may be loss.temperature or moco.temperature"),
        ("demo", {"batch_size": "many"}, "data.batch_size is 'many'; it must be a whole number"),
        ("demo", {"optimizer.lr": 1.0}, "no key optimizer.lr; did you mean optimizer.base_lr"),
        ("demo", {"data": 1}, "data is a section, not a value"),
        ("demo", {"levels": 3, "copies": (1,)}, "montage.copies"),
        ("demo", {"writers": ("tensorboard",)}, "lacks 'jsonl'"),
        ("demo", {"targets": ("detectron3",)}, "export.targets is"),
    ],
)
def test_wrong_configurations_are_named(name, values, message):
    with pytest.raises(UserError, match=message):
        mcl_jax.load_config(name, **values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, _: mcl_jax.load_config(3), "name is 3, not a path"),
        (lambda run, _: mcl_jax.load_config(None), "name is None, not a path"),
        (lambda run, _: mcl_jax.load_config(""), "--config is empty"),
        (lambda run, _: mcl_jax.load_config(run), "--config .* is a folder"),
        (lambda run, _: mcl_jax.load_config("demo", seed=None), "seed is None; it must be a whole"),
        (lambda run, _: mcl_jax.load(None), "path is None, not a path"),
        (lambda run, _: mcl_jax.load(3.5), "path is 3.5, not a path"),
        (lambda run, _: mcl_jax.load(["a"]), r"path is \['a'\], not a path"),
        (
            lambda run, _: mcl_jax.load(run / "config.json", origin=3),
            "origin is 3; it must be text",
        ),
        (lambda run, _: mcl_jax.load(run / "nowhere"), "nowhere' does not exist"),
        (lambda run, _: mcl_jax.load("~nobody_of_this_name/x"), "no such home folder"),
        (lambda run, _: mcl_jax.export(None), "source is None, not a path"),
        (lambda run, _: mcl_jax.export(run, "timm", 3), "out is 3, not a path"),
        (
            lambda run, _: mcl_jax.export(run, ["timm"]),
            "target is .*; it must be one of detectron2",
        ),
        (lambda run, _: mcl_jax.export(run, parts=["fpn"]), r"parts is \['fpn'\]; it must be text"),
        (
            lambda run, _: mcl_jax.export(run, average=1.5),
            "average is 1.5; it must be a whole number",
        ),
        (lambda run, _: mcl_jax.export(run, average=True), "average is True; it must be a whole"),
        (
            lambda run, _: mcl_jax.export(run, divide_weights="2"),
            "divide_weights is '2'; it must be",
        ),
        (
            lambda run, _: mcl_jax.export(run, fold_norms="no"),
            "fold_norms is 'no'; it must be True or",
        ),
        (lambda run, net: net.features(None), "images have the shape"),
        (lambda run, net: net.features("cat.jpg"), "images have the shape"),
        (
            lambda run, net: net.features(np.zeros((1, 32, 32, 3), np.uint8), batch_size="8"),
            "batch_size is '8'; it must be a whole number of images",
        ),
    ],
)
def test_arguments_of_wrong_kinds_are_named(run, network, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call(run[0], network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workdir": None}, "workdir is None, not a path"),
        ({"config": None}, "the configuration is a NoneType"),
        ({"config": "demo"}, "the configuration is a str"),
        ({"callbacks": print}, "callbacks is <built-in function print>; it must be a list"),
        ({"callbacks": [print, "x"]}, "callbacks is .*; it must be a list of functions"),
        ({"callbacks": None}, "callbacks is None; it must be a list of functions"),
        ({"stop_after": 0}, "stop_after is 0; it must be a whole number of steps"),
        ({"stop_after": 1.0}, "stop_after is 1.0; it must be a whole number of steps"),
        ({"profile": 3}, "profile is 3; it must be a tuple of 2, each a whole number of steps"),
        ({"profile": (5, 4)}, "profile is .*, low <= high"),
        ({"owner": "yes"}, "owner is 'yes'; it must be True or False"),
    ],
)
def test_arguments_of_a_run_are_checked_before_it(tmp_path, arguments, message):
    given = {"config": mcl_jax.load_config("demo"), "workdir": tmp_path / "run"} | arguments
    with pytest.raises(UserError, match=message):
        mcl_jax.pretrain(given.pop("config"), given.pop("workdir"), **given)
    assert not list(tmp_path.iterdir())


def test_the_public_surface_is_typed_and_checked():
    assert (REPO / "mcl_jax/py.typed").is_file() and set(mcl_jax.__all__) <= set(dir(mcl_jax))
    assert ".venv/bin/mypy" in (REPO / ".ci/run").read_text().splitlines()
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = mcl_jax.nosuch
