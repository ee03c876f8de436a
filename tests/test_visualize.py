"""scripts/visualize.py: sheets of any method's checkpoint, and what they show.

Shapes: maps [n, h, w, F].
"""

import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from untrained_states import untrained_state

from mcl_jax import program, sharding
from mcl_jax.configs import base, mcl
from mcl_jax.errors import UserError
from mcl_jax.evaluate import activation, visualize
from mcl_jax.runtime import checkpoint

ROOT = Path(__file__).parents[1]


def shrunk(config, method):
    config.method = method
    config.data.batch_size, config.data.image_size, config.data.canvas_size = 64, 64, 64
    config.model.update(
        {
            "backbone": "resnet10",
            "width": 4,
            "fpn_channels": 8,
            "head_convs": 1,
            "projector_hidden": 16,
            "projector_out": 8,
            "predictor_hidden": 16,
        }
    )
    config.data.dataset = "scenes"
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained checkpoints of a method with a pyramid and of one without."""
    folders = {}
    for method, config in (("mcl", base.get_config()), ("byol", mcl.get_config("byol"))):
        config = shrunk(config, method)
        run = program.build(config, sharding.make_mesh(jax.devices()[:1]), images=640)
        folders[method] = tmp_path_factory.mktemp(method)
        meta = {"config": program.plain_config(config)}
        checkpoint.write(folders[method], untrained_state(run), meta)
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (40 + 8 * i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "9.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process; returns (exit code, stdout, stderr)."""

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["visualize.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / "visualize.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0  # None is success
        return code, *capsys.readouterr()

    return script


@pytest.mark.parametrize("method", ["mcl", "byol"])
def test_sheets_of_own_images(run, runs, photos, tmp_path, method):
    single, new = photos / "1.png", tmp_path / "new" / "out"
    other = runs["byol" if method == "mcl" else "mcl"]
    arguments = ("--out", new, "--rows", 2, "--against", other)
    code, out, err = run(runs[method], photos, single, *arguments)
    assert code == 0 and "passed over: 9.jpg: " in err and "6 images" in out
    for name in ("features.png", "retrieval.png", "montage.png", "activation.png"):
        with Image.open(tmp_path / "new" / "out" / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[0] > 200 and pixels.std() > 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere",), "nowhere' does not exist"),
        (("{run}", "missing.png"), "missing.png' does not exist; give image files"),
        (("{run}", "{bad}"), "no image can be read (9.jpg:"),
        (("{run}", "--count", "0"), "--count 0 must be at least 1"),
        (("{run}", "--against", "nowhere"), "nowhere' does not exist"),
    ],
)
def test_mistakes_are_one_line(run, runs, photos, arguments, message):
    flags = [x.format(run=runs["mcl"], bad=photos / "9.jpg") for x in arguments]
    code, _, err = run(*flags)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_colors_are_principal_components():
    """Two groups of pixels along one direction: the first component tells them apart."""
    rng = np.random.default_rng(1)
    side = rng.integers(0, 2, (3, 6, 6))
    direction = rng.normal(size=16)
    maps = 5 * side[..., None] * direction + 0.01 * rng.normal(size=(3, 6, 6, 16))
    colors = visualize.principal_colors(maps.astype(np.float32))
    assert colors.shape == (3, 6, 6, 3) and colors.min() >= 0 and colors.max() <= 1
    red = colors[..., 0] > 0.5
    assert (red == (side == 1)).all() or (red == (side == 0)).all()
    # the order of channels does not matter, nor does an offset
    again = visualize.principal_colors((maps[..., ::-1] + 3).astype(np.float32))
    np.testing.assert_allclose(again, colors, atol=1e-4)


def test_every_level_is_shown_and_scales_are_compared_as_the_loss_does(runs):
    state, meta = checkpoint.read(runs["mcl"])
    images = visualize.load([], meta["config"], 8)
    seen = visualize.look(state, meta["config"], images)
    assert {name: x.shape[:3] for name, x in seen.maps.items()} == {
        f"P{level}": (8, 64 // 2**level, 64 // 2**level) for level in (2, 3, 4, 5)
    }
    assert seen.readings == {2: "P4", 4: "P3", 8: "P2"}
    for cosines in seen.cosines.values():
        assert cosines.shape == (8, 8) and np.abs(cosines).max() <= 1 + 1e-5
    encoder = visualize.encoder_of(meta["config"])
    alike = visualize.between_levels(encoder, state, views=seen.views, levels=2)
    assert len(alike) == 2 and alike[0].shape == (8, 8)


@pytest.mark.parametrize("size, count", [(10, 3), (3, 3), (2, 5), (1000, 16)])
def test_images_are_spread_over_a_folder(size, count):
    order = list(visualize.spread(size, count))
    assert sorted(order) == list(range(size))
    first = np.array(order[:count])
    assert first[0] == 0 and np.ptp(np.diff([*first, size])) <= 1


def test_a_folder_of_classes_shows_images_of_every_class(tmp_path, photos, runs):
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(4):
            shutil.copy(photos / "0.png", tmp_path / name / f"{i}.png")
    _, meta = checkpoint.read(runs["mcl"])
    images = visualize.load([tmp_path], meta["config"], 3)
    assert [Path(name).parent.name for name in images.names] == ["a", "b", "c"]


def test_montages_take_as_many_images_as_fill_canvases(runs):
    _, meta = checkpoint.read(runs["mcl"])
    images = visualize.load([], meta["config"], 21)
    assembled = visualize.assemble(meta["config"], images)
    assert assembled.image_count == 16 and assembled.levels == (0, 1, 2, 3)
    assert [len(x) for x in assembled.rows.values()] == [16, 4, 1, 1]
    with pytest.raises(UserError, match="no image can be read"):
        visualize.load([Path(__file__)], meta["config"], 3)


def test_activation_is_the_sum_of_squares_of_every_image_from_0_to_1():
    maps = np.zeros((2, 2, 2, 3), np.float32)
    maps[0, 0, 1], maps[0, 1, 0] = (3, 0, -4), (0, 1, 2)  # squares: 25 and 5
    maps[1] = 7  # the same everywhere
    heat = activation.activation(maps)
    np.testing.assert_allclose(heat[0], [[0, 1], [0.2, 0]], atol=1e-7)
    assert not heat[1].any()
    large = activation.enlarged(heat, 8)
    assert large.shape == (2, 8, 8) and large.max() == 1 and large[0, 1, 6] == large[0].max()


def test_activations_are_those_of_the_backbones_own_maps(runs):
    state, meta = checkpoint.read(runs["mcl"])
    images = visualize.load([], meta["config"], 3)
    pixels, heat = activation.activations(activation.Checkpoint("a", state, meta["config"]), images)
    assert {name: x.shape for name, x in heat.items()} == {
        f"res{level}": (3, 64 // 2**level, 64 // 2**level) for level in (2, 3, 4, 5)
    }
    encoder = visualize.encoder_of(meta["config"])
    variables = {
        k: {"backbone": state[k]["encoder"]["backbone"]} for k in ("params", "batch_stats")
    }
    augment = meta["config"]["augment"]
    views = ((pixels - augment["mean"]) / augment["std"]).astype(np.float32)
    maps = visualize.feature_maps(encoder, variables, views, pyramid=False)
    energy = (maps["res4"].astype(np.float64) ** 2).sum(-1)
    low, high = (f(energy, (1, 2), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(heat["res4"], (energy - low) / (high - low), atol=1e-5)


def test_checkpoints_are_called_by_what_differs():
    folders = [Path("/runs/a/checkpoints/300"), Path("/runs/b/checkpoints/300")]
    assert activation.names(folders) == ["a/checkpoints/300", "b/checkpoints/300"]
    assert activation.names([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert activation.names(folders[:1] * 2) == [str(folders[0])] * 2
