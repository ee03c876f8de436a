"""Accelerators by name: what a pod consists of, and its chips' published figures.

`mesh_devices('v5e:16x16')` describes a TPU pod slice without having one: the TPU compiler
(`pip install "mcl_jax[tpu]"`) compiles for such a description, it only cannot run.
"""

import os
import re
from dataclasses import dataclass

import jax

from mcl_jax.errors import UserError
from mcl_jax.settings.rules import whole_number

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip (Google Cloud TPU's and NVIDIA's system architecture pages).

    Attributes:
      name: as people call it.
      flops: dense bf16 peak, FLOP/s.
      memory: bytes of HBM.
      bandwidth: of HBM, bytes/s.
      host_cores: vCPUs of the host of a pod slice; 0 if hosts differ too much to say.
      kinds: beginnings of `jax.Device.device_kind`.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    host_cores: int
    kinds: tuple[str, ...]


CHIPS = {
    # name, FLOP/s, memory, bandwidth, host cores, kinds
    "v2": Chip("TPU v2", 45e12, 16 * GIB, 700e9, 96, ("TPU v2",)),
    "v3": Chip("TPU v3", 123e12, 32 * GIB, 900e9, 96, ("TPU v3",)),
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 240, ("TPU v4",)),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 112, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 208, ("TPU v5p", "TPU v5")),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1640e9, 180, ("TPU v6 lite", "TPU v6e")),
    "a100": Chip("NVIDIA A100", 312e12, 80 * GIB, 2039e9, 0, ("NVIDIA A100",)),
    "h100": Chip("NVIDIA H100", 989e12, 80 * GIB, 3350e9, 0, ("NVIDIA H100",)),
    "h200": Chip("NVIDIA H200", 989e12, 141 * GIB, 4800e9, 0, ("NVIDIA H200",)),
}
TPUS = tuple(name for name in CHIPS if name.startswith("v"))


@dataclass(frozen=True)
class Topology:
    """A named set of devices.

    Attributes:
      name: as the user gave it.
      platform: 'tpu', 'cpu' or 'gpu'.
      version: key of CHIPS for a TPU.
      shape: chips along each axis of the slice; (n,) for n local devices, () for all of them.
      slices: pod slices joined over the data-center network.
    """

    name: str
    platform: str
    version: str
    shape: tuple[int, ...]
    slices: int


def parse(name: str, slices: int = 1) -> Topology:
    """Reads 'v5e:16x16', 'cpu:8', 'cpu' or 'gpu'.

    Raises:
      UserError: for anything else, with examples of what would do.
    """
    family, colon, shape = name.partition(":")
    hint = f"e.g. v5e:16x16, v4:4x4x8, cpu:8 or gpu; TPUs: {', '.join(TPUS)}"
    if slices < 1:
        raise UserError(f"{slices} slices: at least 1")
    if family in ("cpu", "gpu"):
        if colon and (family == "gpu" or not whole_number(shape)):
            raise UserError(f"topology {name!r} is not a number of devices; {hint}")
        if slices > 1:
            raise UserError(f"topology {name!r} has no slices; they are for TPU pods")
        return Topology(name, family, version="", shape=(int(shape),) if colon else (), slices=1)
    if family not in TPUS or not re.fullmatch("[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){1,2}", shape):
        raise UserError(f"topology {name!r} is unknown; {hint}")
    return Topology(
        name, "tpu", version=family, shape=tuple(map(int, shape.split("x"))), slices=slices
    )


def prepare_process(topology: Topology) -> None:
    """Environment variables that must be set before JAX starts its backends."""
    if topology.platform == "gpu":
        return
    jax.config.update("jax_platforms", "cpu")  # whatever $JAX_PLATFORMS says
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to ask
    if topology.platform == "cpu" and topology.shape:
        jax.config.update("jax_num_cpu_devices", topology.shape[0])


def mesh_devices(topology: Topology) -> list[jax.Device]:
    """The devices of a topology, described or real, in mesh order.

    Raises:
      UserError: if the TPU compiler is not installed or knows no such slice, or there is no GPU.
    """
    if topology.platform != "tpu":
        jax.devices()  # a $JAX_PLATFORMS that is not here is no fault of the topology's
        try:
            devices = jax.devices(topology.platform)
        except RuntimeError as error:
            raise UserError(f"topology {topology.name!r}: {error}") from error
        count = topology.shape[0] if topology.shape else len(devices)
        if count > len(devices):
            raise UserError(f"topology {topology.name!r}: JAX started with {len(devices)} devices")
        return devices[:count]
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"planning for {topology.name} needs the TPU compiler: pip install 'mcl_jax[tpu]'"
        ) from error
    from jax.experimental import topologies

    shape = topology.shape
    options = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) == {1} else {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        described = topologies.get_topology_desc(topology.name, platform="tpu", **options)
    except Exception as error:  # libtpu raises several kinds
        reason = str(error).strip().splitlines()[0]
        if "lockfile" in reason:
            reason = "another process uses the TPU compiler; wait for it, or start this one with"
            raise UserError(f"{reason} ALLOW_MULTIPLE_LIBTPU_LOAD=1") from error
        raise UserError(f"the TPU compiler knows no {topology.name}: {reason}") from error
    return list(described.devices)


def chip_of(topology: Topology, devices: list[jax.Device]) -> Chip | None:
    """Published figures of a topology's chips; None where there are none (CPU, other GPUs)."""
    return CHIPS[topology.version] if topology.platform == "tpu" else chip_named(devices[0])


def chip_named(device: jax.Device) -> Chip | None:
    """Published figures of a device's chip; None for a kind that is not in CHIPS."""
    return next((c for c in CHIPS.values() if device.device_kind.startswith(c.kinds)), None)


def cores_per_chip(devices: list[jax.Device]) -> int:
    """Devices per chip: 2 where JAX lists a chip's cores one by one (v2, v3; v4 may), else 1."""
    return 1 + max(getattr(device, "core_on_chip", 0) for device in devices)


def hosts(devices: list[jax.Device]) -> int:
    return len({device.process_index for device in devices})
