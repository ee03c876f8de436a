"""Swin: golden forward of torchvision, attention and merging against restatements, drop path.

Shapes: NHWC everywhere; the golden input is NCHW.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_states import DATA, NUMERICS
from swin_networks import SWIN_T, TINY, rule_made, rule_made_state

from mcl_jax.errors import UserError
from mcl_jax.models import backbone, swin, windows
from mcl_jax.models.encoder import Encoder
from mcl_jax.models.layers import Context, Numerics

EVALUATE = Context((2,), train=False)


def numerics(dtype):
    return Numerics(dtype, NUMERICS.bn_momentum, bn_epsilon=NUMERICS.bn_epsilon, axis_name=None)


def tiny(dtype=jnp.float32, drop_path=0.0):
    return swin.Swin("swin_tiny", TINY.width, drop_path=drop_path, numerics=numerics(dtype))


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "torchvision_swin_t.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden_params():
    state, _ = rule_made_state("swin_t", SWIN_T)
    return state["params"]["encoder"]["backbone"]


def tiny_shapes():
    init = lambda key: tiny().init(key, jnp.zeros((2, 32, 32, 3)), EVALUATE)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def normed(x, norm):
    """Layer norm over channels, in float64."""
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * norm["scale"] + norm["bias"]


# Measured 1.2e-6 in float32: rounding of 2^-24 through 12 blocks. In float64 the 4.1e-8 left are
# the rounding of the golden file's float32 (2^-24 = 6e-8 of a value).
@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-6), ("float64", 6e-8)])
def test_golden_forward_of_torchvision(golden, golden_params, dtype, tolerance):
    images = np.random.RandomState(7).randn(2, 3, 64, 64).astype(np.float32).transpose(0, 2, 3, 1)
    with jax.enable_x64(dtype == "float64"):
        network = swin.Swin("swin_t", 96, drop_path=0.0, numerics=numerics(jnp.dtype(dtype)))
        forward = jax.jit(lambda p, x: network.apply({"params": p}, x, EVALUATE, normed=False))
        stages = forward(golden_params, images.astype(dtype))
    ours = {f"stage{i + 1}": np.asarray(stages[name]) for i, name in enumerate(swin.STAGES)}
    pooled = normed(stages["res5"], golden_params["norm5"]).mean((1, 2))
    ours["logits"] = pooled @ rule_made("head.weight", (1000, 768)).T.astype(np.float64)
    ours["logits"] += rule_made("head.bias", (1000,))
    assert set(ours) == set(golden)
    for name, theirs in golden.items():
        error = np.abs(ours[name] - theirs).max() / np.abs(theirs).max()
        assert error < tolerance, f"{name}: {error:.2e}"


def test_parameters_of_the_published_classifier():
    images = jnp.zeros((1, 64, 64, 3))
    init = lambda key: backbone.make_backbone(SWIN_T, NUMERICS).init(key, images, EVALUATE)  # noqa: E731
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    vanilla = {name: x for name, x in params.items() if name not in ("norm2", "norm3", "norm4")}
    classifier = 1000 * (768 + 1)
    assert sum(x.size for x in jax.tree.leaves(vanilla)) + classifier == 28_288_354
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert leaves == {"kernel", "bias", "scale", "relative_position_bias_table"}


def dense_attention(x, params, heads, window, shift):
    """Attention over all tokens of the padded map, those of other windows left out.

    In the original map the shifted windows begin at `shift`; the first one is cut off before it.
    """
    n, height, width, channels = x.shape
    x = np.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
    sizes = x.shape[1:3]
    place = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, 2)
    shifts = [shift if size > window else 0 for size in sizes]
    groups = (place - shifts) // window
    same = (groups[:, None] == groups[None]).all(-1)
    offset = place[:, None] - place[None] + window - 1
    rows = np.where(same, offset[..., 0] * (2 * window - 1) + offset[..., 1], 0)
    bias = params["relative_position_bias_table"][rows]  # [T, T, heads]
    qkv = x.reshape(n, -1, channels) @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    out = np.zeros((n, len(place), channels))
    for h in range(heads):
        depth = channels // heads
        q, k, v = (qkv[..., i * channels + h * depth :][..., :depth] for i in range(3))
        logits = q @ k.swapaxes(1, 2) / np.sqrt(depth) + bias[..., h]
        weights = np.where(same, np.exp(logits - logits.max(-1, keepdims=True)), 0)
        out[..., h * depth :][..., :depth] = weights / weights.sum(-1, keepdims=True) @ v
    out = out @ params["proj"]["kernel"] + params["proj"]["bias"]
    return out.reshape(n, *sizes, channels)[:, :height, :width]


# Both sides shifted, one side covered by a window (not shifted), and no shift asked for.
@pytest.mark.parametrize("height, width, shifted", [(5, 9, True), (3, 9, True), (5, 9, False)])
def test_attention_is_dense_attention_within_shifted_windows(height, width, shifted):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, 6))
    module = swin.WindowAttention(2, 4, shifted=shifted, numerics=numerics(jnp.float64))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
        ours = jax.jit(module.apply)({"params": params}, x)
    theirs = dense_attention(x, params, heads=2, window=4, shift=2 if shifted else 0)
    # Masked pairs weigh exp(-100 + logits) here and 0 there; the rest is float64 rounding.
    np.testing.assert_allclose(ours, theirs, atol=1e-11)


def test_patch_merging_pads_odd_maps_and_reads_rows_first():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 3, 5, 2))
    module = swin.PatchMerging(numerics(jnp.float64))
    kernel = rng.normal(size=(8, 4))
    norm = {"scale": rng.normal(size=8), "bias": rng.normal(size=8)}
    with jax.enable_x64(True):
        ours = module.apply({"params": {"norm": norm, "reduction": {"kernel": kernel}}}, x)
    padded = np.zeros((1, 4, 6, 2))
    padded[:, :3, :5] = x
    assert ours.shape == (1, 2, 3, 4)
    for i in range(2):
        for j in range(3):
            corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
            y = np.concatenate([padded[0, 2 * i + a, 2 * j + b] for a, b in corners])
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * norm["scale"] + norm["bias"]
            np.testing.assert_allclose(ours[0, i, j], y @ kernel, atol=1e-12)


def test_windows_are_put_together_again():
    x = np.random.default_rng(2).normal(size=(2, 6, 9, 4))
    parts = windows.split_windows(x, 3)
    assert parts.shape == (2 * 2 * 3, 9, 4)
    np.testing.assert_array_equal(parts[1], x[0, :3, 3:6].reshape(9, 4))
    np.testing.assert_array_equal(windows.join_windows(parts, 3, height=6, width=9), x)


def test_output_norms_are_all_that_normed_adds(monkeypatch):
    """With stages that keep the number of channels, so that nothing has to be compiled."""
    monkeypatch.setattr(swin.Stage, "__call__", lambda self, x, context: 3 * x + 1)
    rng = np.random.default_rng(4)
    params = {name: tiny_shapes()[name] for name in ("patch_embed", "patch_norm")}
    params |= {f"norm{level}": params["patch_norm"] for level in (2, 3, 4, 5)}
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), params)
    images = rng.normal(size=(2, 32, 32, 3))
    with jax.enable_x64(True):
        network = tiny(jnp.float64)
        plain = network.apply({"params": params}, images, EVALUATE, normed=False)
        ours = network.apply({"params": params}, images, EVALUATE)
    assert set(ours) == set(plain) == set(swin.STAGES)
    for stage in swin.STAGES:
        theirs = normed(plain[stage], params[f"norm{stage[-1]}"])
        np.testing.assert_allclose(ours[stage], theirs, atol=1e-12)


def test_bfloat16_computes_layer_norms_in_float32():
    rng = np.random.default_rng(5)
    x = jnp.asarray(30 + rng.normal(size=(4, 64)), jnp.bfloat16)  # offset costs bfloat16 all digits
    norm = lambda dtype: swin.layer_norm(numerics(dtype), "norm")  # noqa: E731
    variables = norm(jnp.float32).init(jax.random.key(0), x)
    wide = norm(jnp.float32).apply(variables, x.astype(jnp.float32))
    ours = norm(jnp.bfloat16).apply(variables, x)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, wide.astype(jnp.bfloat16))
    init = lambda key: tiny(jnp.bfloat16).init_with_output(  # noqa: E731
        key, jnp.zeros((2, 32, 32, 3)), EVALUATE
    )
    features, variables = jax.eval_shape(init, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_drop_path_drops_rows_and_keeps_the_expectation():
    x, key, rate = jnp.ones((4000, 2, 3)), jax.random.key(1), 0.25
    dropped = np.asarray(swin.drop_path(x, rate, key))
    rows = dropped.reshape(4000, -1)
    assert set(np.unique(rows)) == {0, np.float32(1 / (1 - rate))}
    assert (rows == rows[:, :1]).all()
    # five standard deviations of a mean of 4000 rows
    assert abs(rows[:, 0].mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / 4000)
    np.testing.assert_array_equal(dropped, swin.drop_path(x, rate, key))
    assert (dropped != swin.drop_path(x, rate, jax.random.key(2))).any()


def test_drop_path_needs_training_and_its_own_stream():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(2, 3, 3, 8)).astype(np.float32)
    block = swin.Block(swin.size_of("swin_tiny"), shifted=False, drop_rate=0.9, numerics=NUMERICS)
    train, stream = Context((2,), train=True), lambda seed: {"drop_path": jax.random.key(seed)}
    shapes = jax.eval_shape(lambda key: block.init(key, x, EVALUATE), jax.random.key(0))
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    run = jax.jit(lambda v, context, rngs: block.apply(v, x, context, rngs=rngs), static_argnums=1)
    still = run(variables, EVALUATE, {})
    np.testing.assert_array_equal(still, run(variables, EVALUATE, stream(3)))
    np.testing.assert_array_equal(still, run(variables, train, {}))
    first = run(variables, train, stream(3))
    np.testing.assert_array_equal(first, run(variables, train, stream(3)))
    others = [np.asarray(run(variables, train, stream(seed))) for seed in range(4, 10)]
    assert any((other != first).any() for other in others)
    # At rate 0.9 most branches are left out: a row is then the block's input.
    assert any((other == x).all((1, 2, 3)).any() for other in others)


def test_drop_rates_rise_linearly_over_the_blocks(monkeypatch):
    rates = []
    monkeypatch.setattr(swin, "drop_path", lambda x, rate, key: rates.append(rate) or x)
    rngs = {"drop_path": jax.random.key(0)}
    run = lambda params: tiny(drop_path=0.4).apply(  # noqa: E731
        {"params": params}, jnp.zeros((2, 32, 32, 3)), Context((2,), train=True), rngs=rngs
    )
    jax.eval_shape(run, tiny_shapes())
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])  # attention, MLP


def test_initialization_is_torchvisions():
    x, key = jnp.zeros((1, 3, 3, 64)), jax.random.key(0)
    block = swin.Block(swin.size_of("swin_tiny"), shifted=False, drop_rate=0.0, numerics=NUMERICS)
    init = lambda key: (  # noqa: E731
        block.init(key, x, EVALUATE)["params"],
        swin.PatchEmbedding(96, NUMERICS).init(key, jnp.zeros((1, 4, 4, 3)))["params"],
    )
    block, patches = jax.jit(init)(key)
    for kernel in (block["mlp1"]["kernel"], block["attention"]["qkv"]["kernel"]):
        # 8192 values and more: their standard deviation is known to 0.8 %
        assert abs(np.std(kernel) / 0.02 - 1) < 0.04
    table = block["attention"]["relative_position_bias_table"]
    assert table.shape == (25, 8) and abs(np.std(table) / 0.02 - 1) < 0.25
    assert not block["mlp1"]["bias"].any() and not block["attention"]["qkv"]["bias"].any()
    limit = 1 / np.sqrt(48)
    for drawn in (patches["kernel"], patches["bias"]):
        assert 0.9 * limit < np.abs(drawn).max() <= limit
    assert abs(np.std(patches["kernel"]) / (limit / np.sqrt(3)) - 1) < 0.05


def test_encoder_trains_on_maps_smaller_than_a_window():
    encoder = Encoder(TINY, NUMERICS)
    rng = np.random.default_rng(7)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    init = lambda key: encoder.init(key, images, method="features")  # noqa: E731
    variables = jax.eval_shape(init, jax.random.key(0))
    variables = jax.tree.map(
        lambda s: rng.normal(scale=0.5, size=s.shape).astype(np.float32), variables
    )

    @jax.jit
    @jax.grad
    def gradient(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        features, _ = encoder.apply(
            state, images, train=True, method="features", mutable=["batch_stats"]
        )
        return sum((x**3).mean() for name, x in features.items() if name[0] == "P")

    for path, x in jax.tree_util.tree_flatten_with_path(gradient(variables["params"]))[0]:
        assert np.isfinite(x).all() and np.abs(x).max() > 0, jax.tree_util.keystr(path)


def test_names_and_sizes_of_the_config():
    assert backbone.stage_channels(SWIN_T) == (96, 192, 384, 768)
    size = swin.size_of("swin_t")
    assert [swin.heads(size, c) for c in backbone.stage_channels(SWIN_T)] == [3, 6, 12, 24]
    with pytest.raises(UserError, match="'swin_b' is not one of resnet18.*swin_t"):
        backbone.check_backbone("swin_b")
    with pytest.raises(UserError, match="100 channels cannot be split into 3 heads"):
        swin.heads(size, 100)
    with pytest.raises(UserError, match="model.drop_path must be at least 0 and below 1, got 1"):
        tiny(drop_path=1.0).init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), EVALUATE)
