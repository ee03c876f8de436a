"""The mesh and the one place that says what is split over which axis.

State is replicated, batches are split over `data` by image. The whole step is one shard_map body:
under plain jit, levels concatenated on a global batch axis become all-to-alls (design section 4).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcl_jax.errors import UserError

# The mesh is a rectangle. Its rows are *device groups*: the devices of a row share BatchNorm
# statistics. Usually there is one row.
DEVICE_GROUP_AXIS, MEMBER_AXIS = "device_group", "member"
DATA_AXIS = (DEVICE_GROUP_AXIS, MEMBER_AXIS)
AxisName = str | tuple[str, ...]
STATE_SPEC = PartitionSpec()
BATCH_SPEC = PartitionSpec(DATA_AXIS)


def make_mesh(devices: Sequence[jax.Device] | None = None, norm_devices: int = 0) -> Mesh:
    """Mesh over all devices of all processes (or the given ones).

    Args:
      devices: in the order of their parts of the batch.
      norm_devices: `numerics.bn_devices`, devices in a group that shares BatchNorm statistics; 0:
        all. Groups are formed host by host, so that those of a host's size do not cross hosts.

    Raises:
      UserError: if the devices cannot be divided into such groups.
    """
    devices = list(jax.devices() if devices is None else devices)
    if norm_devices < 0 or len(devices) % (norm_devices or 1):
        fitting = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"numerics.bn_devices is {norm_devices}; {len(devices)} devices can be in groups of "
            f"{', '.join(map(str, fitting))}, or 0 for all of them"
        )
    if norm_devices:
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices).reshape(-1, norm_devices or len(devices)), DATA_AXIS)


def mesh_for(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a run of this configuration trains on, see `make_mesh`."""
    return make_mesh(devices, config["numerics"]["bn_devices"])


def norm_axis(mesh: Mesh) -> AxisName:
    """Over which axes BatchNorm statistics are shared."""
    return DATA_AXIS if mesh.shape[DEVICE_GROUP_AXIS] == 1 else MEMBER_AXIS


def merge_device_groups(statistics: Any) -> Any:
    """Running statistics as the mean of all device groups', in one collective.

    Inside shard_map. Afterwards they are equal on all devices, as the state has to be; with one
    group they are so already.
    """
    if jax.lax.axis_size(DEVICE_GROUP_AXIS) == 1:
        return statistics
    flat, unflatten = ravel_pytree(statistics)
    return unflatten(jax.lax.pmean(flat, DEVICE_GROUP_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, STATE_SPEC)


def images_per_device(
    batch_size: int, mesh: Mesh, key: str = "data.batch_size", micro_batches: int = 1
) -> int:
    """b = B / D / micro-batches; UserError naming the config key if the batch does not divide."""
    parts = mesh.size * micro_batches
    if batch_size < parts or batch_size % parts:
        nearest = max(1, round(batch_size / parts)) * parts
        times = f" x {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise UserError(
            f"{key} {batch_size} does not divide over {mesh.size} devices{times}; {nearest} would"
        )
    return batch_size // parts


def per_device(body: Callable, mesh: Mesh) -> Callable:
    """Maps body(state, batch, seed) -> (state, metrics) over the data axis.

    Inside, `state` is the whole state, `batch` the device's images; what comes out must be equal
    on all devices (checked while tracing).
    """
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(STATE_SPEC, BATCH_SPEC, STATE_SPEC),
        out_specs=(STATE_SPEC, STATE_SPEC),
    )


def by_platform(*arguments: Any, cpu: Callable, default: Callable) -> Any:
    """cpu(*arguments) on CPUs, default(*arguments) elsewhere; both compute the same.

    One of them alone is traced: inside a `shard_map` by what the mesh's devices are, elsewhere by JAX's
    default backend. (`jax.lax.platform_dependent` would trace both and drop one later; a step traced
    without the other takes two thirds of the time.)

    Args:
      arguments: arrays.
      cpu, default: functions of them with results of the same shapes and dtypes.

    Example:
      >>> by_platform(jax.numpy.arange(3), cpu=lambda x: -x, default=lambda x: x).tolist()  # here: cpu
      [0, -1, -2]
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return cpu(*arguments) if platform == "cpu" else default(*arguments)


def device_local(tree: Any, axis_name: AxisName) -> Any:
    """Marks replicated values as each device's own, so that gradients stay local until averaged."""
    return jax.lax.pcast(tree, axis_name, to="varying")


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Per-process numpy batch -> global arrays split over the data axis."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
