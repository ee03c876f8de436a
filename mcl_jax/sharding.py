"""The mesh and the one place that says what is split over which axis.

State is replicated, batches are split over `data` by image. The whole step is one shard_map body:
under plain jit, levels concatenated on a global batch axis become all-to-alls (design section 4).
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcl_jax.errors import UserError

DATA_AXIS = "data"
STATE_SPEC = PartitionSpec()
BATCH_SPEC = PartitionSpec(DATA_AXIS)


def make_mesh(devices: list | None = None) -> Mesh:
    """One-axis mesh over all devices of all processes (or the given ones)."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA_AXIS,))


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


def device_local(tree, axis_name: str):
    """Marks replicated values as each device's own, so that gradients stay local until averaged."""
    return jax.lax.pcast(tree, axis_name, to="varying")


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Per-process numpy batch -> global arrays split over the data axis."""
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
