"""Whether a compiled step has room on its devices: told before the first step, not by a crash in it."""

import contextlib
import re
from pathlib import Path

import jax

from mcl_jax.errors import UserError

GIB = 2**30
MACHINE = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container; 'max' where there is none


def demand_room(compiled: jax.stages.Compiled) -> None:
    """Refuses a step that needs more memory than one of this process's devices has.

    Raises:
      UserError: with both sizes, and what would need less.
    """
    device = jax.local_devices()[0]
    peak, room = peak_bytes(compiled), room_bytes(device)
    if not peak or not room or peak <= room:
        return
    hint = "; a CPU trains the configuration demo" if device.platform == "cpu" else ""
    raise UserError(
        f"one step needs {peak / GIB:.1f} GiB on every device, a device here "
        f"({device.device_kind}) has {room / GIB:.1f} GiB. A smaller data.batch_size, more "
        f"optimizer.micro_batches or a smaller data.image_size need less{hint}"
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Of one device's program: arguments, temporaries, and outputs not aliased to arguments.

    0 where the compiler does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    output_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + max(output_bytes, 0)


def room_bytes(device: jax.Device) -> int:
    """What JAX may take of a device's memory; 0 where nobody tells.

    A machine's CPU devices share what the machine, swap included, or the container has.
    """
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", 0)
    limits = []
    with contextlib.suppress(OSError):  # not Linux
        sizes = re.findall(r"^(?:MemTotal|SwapTotal): +(\d+) kB", MACHINE.read_text(), re.M)
        limits.append(1024 * sum(map(int, sizes)))
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(CGROUP_LIMIT.read_text()))
    return min(limits, default=0) // jax.local_device_count(device.platform)
