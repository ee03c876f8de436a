"""BatchNorm against torch, group by group, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_or_skip import torch

from mcl_jax import sharding
from mcl_jax.models.norm import BatchNorm
from mcl_jax.models.pooling import max_pool

GROUPS = (4, 8, 4)


def ours(x, train, axis_name=None, groups=GROUPS):
    """Output and new statistics, in x's type."""
    norm = BatchNorm(momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=x.dtype)
    scale, bias = np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6)
    variables = {
        "params": {"scale": jnp.asarray(scale, x.dtype), "bias": jnp.asarray(bias, x.dtype)},
        "batch_stats": {"mean": jnp.full(6, 0.3, x.dtype), "var": jnp.full(6, 1.7, x.dtype)},
    }
    return norm.apply(variables, x, groups, train=train, mutable=["batch_stats"])


def torchs(x, train):
    """Output, mean and variance in float64: torch's float32 has rounding errors of its own."""
    norm = torch.nn.BatchNorm2d(6, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 6, dtype=torch.float64))
        norm.bias.copy_(torch.linspace(-1, 1, 6, dtype=torch.float64))
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(1.7)
    norm.train(train)
    parts = torch.split(torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2), GROUPS)
    out = torch.cat([norm(part) for part in parts]).permute(0, 2, 3, 1)
    return out.detach().numpy(), norm.running_mean.numpy(), norm.running_var.numpy()


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    groups = [rng.normal(5 * i, 1 + i, (n, 3, 3, 6)) for i, n in enumerate(GROUPS)]
    return np.concatenate(groups).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("train", [True, False])
def test_equals_torch_applied_to_one_group_after_another(x, train, dtype):
    with jax.enable_x64(dtype == "float64"):
        out, state = ours(jnp.asarray(x, dtype), train)
    assert out.dtype == dtype
    expected, *moments = torchs(x, train)
    if dtype == "float64":  # values reach 27, where neighboring numbers lie 3.6e-15 apart
        tolerance, of_moments = {"atol": 2e-14, "rtol": 0}, 1e-14
    else:  # and neighboring float32 1.9e-6
        tolerance, of_moments = {"atol": 2e-6, "rtol": 2**-22}, 1e-6
    np.testing.assert_allclose(out, expected, **tolerance)
    for name, theirs in zip(("mean", "var"), moments, strict=True):
        np.testing.assert_allclose(state["batch_stats"][name], theirs, rtol=of_moments)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_pooling_before_normalizing_is_pooling_after_it(relu, train):
    """Channels of negative scale take the smallest; gradients of x, scale and bias are torch's."""
    rng = np.random.default_rng(1)
    x = rng.normal(1, 2, (6, 8, 8, 6)).astype(np.float32)
    weight = rng.normal(size=(6, 4, 4, 6)).astype(np.float32)
    scale, bias = np.linspace(-2, 2, 6, dtype=np.float32), np.linspace(-1, 1, 6, dtype=np.float32)
    mean, var = np.full(6, 0.3, np.float32), np.full(6, 1.7, np.float32)
    norm = BatchNorm(momentum=0.9, epsilon=1e-5, relu=relu, pool=max_pool)

    def loss(x, scale, bias):
        stats = {"mean": mean, "var": var}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        out, _ = norm.apply(variables, x, (2, 4), train=train, mutable=["batch_stats"])
        return (out * weight).sum(), out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

    theirs = torch.nn.BatchNorm2d(6, dtype=torch.float64).train(train)
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    leaf = torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.cat([theirs(part) for part in torch.split(leaf, (2, 4))])
    expected = torch.nn.functional.max_pool2d(expected.relu() if relu else expected, 3, 2, 1)
    (expected * torch.tensor(weight).permute(0, 3, 1, 2)).sum().backward()
    np.testing.assert_allclose(out, expected.detach().permute(0, 2, 3, 1), atol=2e-6)
    in_torch = (leaf.grad.permute(0, 2, 3, 1), theirs.weight.grad, theirs.bias.grad)
    for ours, theirs_grad in zip(gradients, in_torch, strict=True):
        np.testing.assert_allclose(ours, theirs_grad, atol=2e-5)


def test_devices_share_their_statistics_in_one_all_reduce(x):
    spread = np.concatenate([x] * 8) * np.linspace(0.5, 3, 8).repeat(16)[:, None, None, None]
    spread = spread.astype(np.float32) + 50  # a large mean: naive second moments would cancel
    mesh = sharding.make_mesh()
    spec = jax.sharding.PartitionSpec
    mapped = jax.jit(
        jax.shard_map(
            lambda part: ours(part, True, sharding.DATA_AXIS, groups=(16,)),
            mesh=mesh,
            in_specs=spec(sharding.DATA_AXIS),
            out_specs=(spec(sharding.DATA_AXIS), spec()),
        )
    )
    out, state = mapped(spread)
    expected, expected_state = ours(jnp.asarray(spread), True, groups=(128,))
    # float32 holds values near 200 to 1.5e-5 of their distance from the mean
    np.testing.assert_allclose(out, expected, atol=5e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            state["batch_stats"][name], expected_state["batch_stats"][name], rtol=2e-5
        )
    text = mapped.lower(spread).compile().as_text()
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == 1


def test_bfloat16_is_normalized_by_statistics_in_float32(x):
    rounded = jnp.asarray(x, jnp.bfloat16)
    norm = BatchNorm(momentum=0.9, epsilon=1e-5, affine=False, dtype=jnp.bfloat16)
    variables = {"batch_stats": {"mean": jnp.full(6, 4.0), "var": jnp.ones(6)}}
    out, state = norm.apply(variables, rounded, GROUPS, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    exact, groups = np.asarray(rounded, np.float64), np.cumsum(GROUPS)[:-1]
    expected = [(g - g.mean((0, 1, 2))) / g.std((0, 1, 2)) for g in np.split(exact, groups)]
    np.testing.assert_allclose(np.float64(out), np.concatenate(expected), atol=2**-8 * 3)
    mean = 4.0
    for group in np.split(exact, groups):
        mean = 0.9 * mean + 0.1 * group.mean((0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["mean"], mean, rtol=2e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
def test_gradients_equal_torchs(x, relu, devices):
    """Written-out gradients, with groups of unequal size (on devices: of equal shares)."""
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)
        weight = np.random.default_rng(1).normal(size=x.shape)
        scale, bias = np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6)
        groups = GROUPS if devices == 1 else (4,)  # 16 images on 4 devices are one group
        axis = None if devices == 1 else sharding.DATA_AXIS
        norm = BatchNorm(0.9, 1e-5, relu=relu, axis_name=axis, dtype=jnp.float64)
        stats = {"mean": jnp.full(6, 0.3), "var": jnp.ones(6)}

        def loss(x, weight, params):
            out, _ = norm.apply(
                {"params": params, "batch_stats": stats},
                x,
                groups,
                train=True,
                mutable=["batch_stats"],
            )
            return (out * weight).sum()

        def gradients(x, weight, params):
            if axis is not None:
                params = sharding.device_local(params, axis)
            dx, dparams = jax.grad(loss, (0, 2))(x, weight, params)
            return dx, dparams if axis is None else jax.lax.psum(dparams, axis)

        if axis is not None:
            spec = jax.sharding.PartitionSpec
            mesh = sharding.make_mesh(jax.devices()[:devices])
            gradients = jax.shard_map(
                gradients,
                mesh=mesh,
                in_specs=(spec(sharding.DATA_AXIS), spec(sharding.DATA_AXIS), spec()),
                out_specs=(spec(sharding.DATA_AXIS), spec()),
            )
        dx, dparams = jax.jit(gradients)(x, weight, {"scale": scale, "bias": bias})

    theirs = [torch.tensor(v, requires_grad=True) for v in (x, scale, bias)]
    sizes = GROUPS if devices == 1 else (16,)
    parts = [
        torch.nn.functional.batch_norm(
            part.permute(0, 3, 1, 2), None, None, theirs[1], theirs[2], training=True
        )
        for part in torch.split(theirs[0], sizes)
    ]
    out = torch.cat(parts).permute(0, 2, 3, 1)
    ((out.relu() if relu else out) * torch.tensor(weight)).sum().backward()
    for ours_, theirs_ in zip((dx, dparams["scale"], dparams["bias"]), theirs, strict=True):
        np.testing.assert_allclose(ours_, theirs_.grad, rtol=1e-9, atol=1e-9)


def test_wrong_groups_are_refused(x):
    with pytest.raises(ValueError, match=r"groups \(4, 4\) sum to 8, batch is 16"):
        ours(jnp.asarray(x), True, groups=(4, 4))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_running_statistics_stay_in_their_type_whatever_activations_are_in(x, dtype):
    """The next step is compiled for the state's types."""
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(x, dtype)
        norm = BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype)
        arrays = jax.eval_shape(lambda: norm.init(jax.random.key(0), x, GROUPS, train=True))
        _, after = jax.eval_shape(
            lambda arrays: norm.apply(arrays, x, GROUPS, train=True, mutable=["batch_stats"]),
            arrays,
        )
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
