"""BatchNorm statistics shared by groups of devices: numerics.bn_devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import PartitionSpec
from stand_in_backbone import use_stand_in_backbone

from mcl_jax import program, sharding
from mcl_jax.errors import UserError
from mcl_jax.models.norm import BatchNorm
from mcl_jax.planning import compiled

GROUPS, MEMBERS, PER_DEVICE, CHANNELS = 2, 4, 2, 3


def test_every_group_normalizes_by_its_own_statistics_and_all_keep_their_mean():
    """Output, gradients and running statistics against one device per group."""
    mesh = sharding.make_mesh(jax.devices()[: GROUPS * MEMBERS], MEMBERS)
    rng = np.random.default_rng(0)
    rows = GROUPS * MEMBERS * PER_DEVICE
    x = rng.normal(size=(rows, 2, 2, CHANNELS)) * 3 + np.arange(rows)[:, None, None, None]
    x, weights = x.astype(np.float32), rng.normal(size=x.shape).astype(np.float32)
    params = {"scale": jnp.array([1.5, 0.5, -1.0]), "bias": jnp.array([0.1, 0.0, 2.0])}
    stats = {"mean": jnp.full(CHANNELS, 0.3), "var": jnp.full(CHANNELS, 2.0)}

    def apply(params, x, weights, axis_name):
        norm = BatchNorm(0.9, 1e-5, axis_name=axis_name)
        variables = {"params": params, "batch_stats": stats}
        out, changed = norm.apply(variables, x, (x.shape[0],), train=True, mutable="batch_stats")
        return (out * weights).sum(), (out, changed["batch_stats"])

    def body(x, weights):
        local = sharding.device_local(params, sharding.DATA_AXIS)
        gradient = jax.grad(apply, argnums=(0, 1), has_aux=True)
        (d_params, dx), (out, changed) = gradient(local, x, weights, sharding.norm_axis(mesh))
        total = jax.lax.psum(d_params, sharding.DATA_AXIS)
        return out, dx, total, sharding.merge_device_groups(changed)

    split, whole = sharding.BATCH_SPEC, PartitionSpec()
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(split, split), out_specs=(split, split, whole, whole)
    )
    out, dx, d_params, changed = jax.jit(mapped)(x, weights)

    alone = [
        jax.grad(apply, argnums=(0, 1), has_aux=True)(params, *part, None)
        for part in zip(np.split(x, GROUPS), np.split(weights, GROUPS), strict=True)
    ]
    close = {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(out, np.concatenate([a[1][0] for a in alone]), **close)
    np.testing.assert_allclose(dx, np.concatenate([a[0][1] for a in alone]), **close)
    for name in params:
        np.testing.assert_allclose(d_params[name], sum(a[0][0][name] for a in alone), **close)
    for name in stats:
        mean = np.mean([a[1][1][name] for a in alone], 0)
        np.testing.assert_allclose(changed[name], mean, **close)


def test_with_groups_no_norm_layer_waits_for_another_host(monkeypatch):
    """Whole steps: statistics of 4 of 8 devices, of all, and what crosses between the fours."""
    use_stand_in_backbone(monkeypatch)

    def figures(bn_devices):
        config = small_config()
        config.numerics.bn_devices = bn_devices
        run = program.build(config, sharding.mesh_for(config), images=64)
        figures = compiled.figures(program.lower_step(run).compile(), [0] * 4 + [1] * 4)
        names = ("collectives", "collectives_across_hosts")
        return run, *(figures[name].get("all-reduce", 0) for name in names)

    run, everything, across = figures(0)
    assert across == everything
    _, count, across = figures(4)
    assert count == everything + 1  # the running statistics, all in one
    statistics = jax.tree_util.tree_leaves_with_path(program.abstract_state(run).batch_stats)
    layers = sum("mean" in str(path[-1]) for path, _ in statistics)
    # forward and backward of every online norm, at least
    assert count - across >= 2 * layers


@pytest.mark.parametrize("negatives", ["micro_batch", "step"])
def test_groups_go_with_micro_batches(negatives, monkeypatch):
    """Tracing checks that the state comes out equal on all devices."""
    use_stand_in_backbone(monkeypatch)
    config = small_config()
    config.numerics.bn_devices, config.optimizer.micro_batches = 4, 2
    config.loss.negatives = negatives
    run = program.build(config, sharding.mesh_for(config), images=64)
    assert program.lower_step(run).out_info[0].batch_stats.keys() == {"encoder", "predictor"}


def small_config():
    config = tiny_config()
    config.data.batch_size, config.model.neck, config.model.head_convs = 16, "c4", 1
    config.data.image_size = config.data.canvas_size = 32
    config.montage.levels = 1
    return config


@pytest.mark.parametrize("bn_devices", [3, -1, 16])
def test_groups_have_to_divide_the_devices(bn_devices):
    with pytest.raises(UserError, match=f"bn_devices is {bn_devices}; 8 .* 1, 2, 4, 8, or 0"):
        sharding.make_mesh(norm_devices=bn_devices)


def test_a_mesh_without_the_groups_that_the_config_wants_is_a_mistake():
    config = small_config()
    config.numerics.bn_devices = 4
    with pytest.raises(ValueError, match="asks for 2 groups"):
        program.build(config, sharding.make_mesh(), images=64)
