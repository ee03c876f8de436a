"""Formulations of convolution and pooling against XLA's own, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mcl_jax import sharding
from mcl_jax.models import convolution, pooling


def random(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def out_and_gradients(function, *arguments):
    out, pull = jax.vjp(function, *arguments)
    return out, *pull(random(2, out.shape, out.dtype))


@pytest.mark.parametrize(
    "shape, k, stride, expected",
    [
        ((2, 8, 8, 6), 1, 1, convolution.convolve_patches),
        ((2, 9, 7, 6), 1, 2, convolution.convolve_patches),
        ((2, 8, 12, 3), 7, 2, convolution.convolve_folded),
        ((2, 16, 20, 3), 7, 2, convolution.convolve_folded),
        ((2, 16, 18, 3), 7, 2, convolution.convolve_directly),
        ((2, 16, 16, 6), 3, 1, convolution.convolve_directly),
    ],
)
def test_the_formulation_picked_equals_xlas(shape, k, stride, expected):
    x, kernel = random(0, shape), random(1, (k, k, shape[-1], 5))
    assert convolution.formulation_on_cpu(shape, kernel.shape, stride) is expected
    ours = out_and_gradients(lambda *a: convolution.convolve(*a, stride), x, kernel)
    direct = out_and_gradients(lambda *a: convolution.convolve_directly(*a, stride), x, kernel)
    for a, b in zip(ours, direct, strict=True):  # sums of up to 147 products in another order
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


def test_other_types_stay_what_they_are():
    x = random(0, (1, 8, 16, 3), jnp.bfloat16)
    out = convolution.convolve(x, random(1, (7, 7, 3, 2)), 2)
    assert out.dtype == jnp.bfloat16
    # XLA's result in float32, rounded once: bfloat16 keeps 8 bits
    expected = convolution.convolve_directly(x.astype(jnp.float32), random(1, (7, 7, 3, 2)), 2)
    np.testing.assert_allclose(
        out.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max()
    )
    with jax.enable_x64(True):
        x, kernel = random(0, (1, 8, 16, 3), "float64"), random(1, (7, 7, 3, 2), "float64")
        out, expected = (
            f(x, kernel, 2) for f in (convolution.convolve, convolution.convolve_directly)
        )
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_replicated_kernel_gets_the_sum_of_all_devices_gradients():
    """Under shard_map's checks, as autodiff of XLA's convolution does it."""
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    x, kernel = random(0, (2, 8, 8, 3)), random(1, (7, 7, 3, 2))

    def gradient(x, kernel):
        return jax.grad(lambda kernel: jnp.sum(convolution.convolve_folded(x, kernel, 2) ** 2))(
            kernel
        )

    specs = (PartitionSpec("data"), PartitionSpec())
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    expected = gradient(x, kernel)
    np.testing.assert_allclose(
        jax.jit(sharded)(x, kernel), expected, rtol=0, atol=3e-6 * np.abs(expected).max()
    )


@pytest.mark.parametrize("height, width", [(8, 8), (7, 8), (5, 3), (1, 2)])
def test_pooling_equals_xlas_bit_for_bit_ties_included(height, width):
    # Few values, so that nearly every window has several largest ones.
    x = jnp.round(random(0, (3, height, width, 4)))
    ours = out_and_gradients(pooling.max_pool_by_comparison, x)
    xlas = out_and_gradients(pooling.max_pool_by_windows, x)
    np.testing.assert_array_equal(ours[0], xlas[0])
    np.testing.assert_allclose(ours[1], xlas[1], rtol=0, atol=1e-6)  # up to 4 windows add up


def test_pooling_keeps_nan():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 2, 3, 0].set(jnp.nan)
    got = jnp.isnan(pooling.max_pool_by_comparison(x))
    np.testing.assert_array_equal(got, jnp.isnan(pooling.max_pool_by_windows(x)))
    assert got.sum() == 2


def network(x, kernel, small):
    out = pooling.max_pool(convolution.convolve(x, kernel, 2))
    return convolution.convolve(out[:, :2, :2], small, 1)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize("known_by", ["mesh", "default backend"])
def test_a_platforms_formulation_alone_is_traced(known_by, platform, monkeypatch):
    """On accelerators XLA's own pooling, stem and convolution of small maps."""

    def mapped(*arrays):  # not the function itself: JAX keeps what it traced
        return network(*arrays)

    if known_by == "mesh":
        device = jax.sharding.AbstractDevice("", None, platform)
        axes = ((1, 1), sharding.DATA_AXIS, (jax.sharding.AxisType.Auto,) * 2)
        mesh = jax.sharding.AbstractMesh(*axes, abstract_device=device)
        split, whole = sharding.BATCH_SPEC, sharding.STATE_SPEC
        mapped = jax.shard_map(network, mesh=mesh, in_specs=(split, whole, whole), out_specs=split)
    else:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
    arrays = map(jnp.zeros, ((1, 16, 16, 3), (7, 7, 3, 4), (3, 3, 4, 4)))
    text = str(jax.make_jaxpr(mapped)(*arrays))
    assert "cond" not in text and "platform_index" not in text and "7,7,3,4" in text
    counts = [text.count(f" {name}[") for name in ("reduce_window_max", "conv_general_dilated")]
    assert counts == ([0, 1] if platform == "cpu" else [1, 2])
    for words in ("convolve_folded", "7,3,12,8", "dot_general"):
        assert (words in text) == (platform == "cpu")
