"""Deterministic figures of a compiled step: FLOPs, bytes, memory, collectives."""

import re
from collections import Counter
from typing import Any

import jax

# Dense bf16 peak per device in FLOP/s, from the vendors' data sheets; for MFU where known.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


def figures(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What XLA says of one device's program.

    Returns:
      'flops', 'bytes' (accessed, as XLA's cost model counts them), 'argument_bytes',
      'temporary_bytes', 'peak_bytes' (arguments + temporaries + outputs not aliased to arguments),
      'collectives' {kind: count}.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": held + max(fresh, 0),
        "collectives": collectives(compiled.as_text()),
    }


def collectives(hlo: str) -> dict[str, int]:
    """Counts collective instructions in HLO text; an asynchronous pair counts once."""
    kinds = "|".join(COLLECTIVES)
    found = re.findall(rf"[\s)]({kinds})(?:-start)?\(", hlo)
    return dict(Counter(found))


def peak_flops(device: jax.Device) -> float | None:
    """Published dense bf16 peak of a device in FLOP/s; None if it is not in the list."""
    matches = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None
