"""Deterministic figures of a compiled step: FLOPs, bytes, memory, collectives."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")


class Collective(NamedTuple):
    """One collective instruction of a device's program.

    Attributes:
      kind: one of KINDS.
      bytes: of its result on one device.
      groups: int [groups, devices in each] numbers in mesh order; None: all devices at once.
    """

    kind: str
    bytes: int
    groups: np.ndarray | None

    def crosses(self, hosts: Sequence[int]) -> bool:
        """Whether any of its groups has devices of different hosts (given per device)."""
        if self.groups is None:
            return len(set(hosts)) > 1
        own = np.asarray(hosts)[self.groups]
        return bool((own != own[:, :1]).any())


def figures(compiled: jax.stages.Compiled, hosts: Sequence[int] | None = None) -> dict[str, Any]:
    """What XLA says of one device's program.

    Args:
      compiled: the step.
      hosts: per device in mesh order the number of its host, to count what crosses hosts.

    Returns:
      'flops', 'bytes' (accessed, as XLA's cost model counts them), 'argument_bytes',
      'temporary_bytes', 'peak_bytes' (arguments + temporaries + outputs not aliased to arguments),
      'collectives' {kind: count}, 'collective_bytes' {kind: bytes per step}, and with `hosts`
      'collectives_across_hosts' {kind: count}.
    """
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = list(collectives(compiled.as_text()))
    sizes: Counter[str] = Counter()
    for collective in found:
        sizes[collective.kind] += collective.bytes
    result = {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": held + max(fresh, 0),
        "collectives": dict(Counter(collective.kind for collective in found)),
        "collective_bytes": dict(sizes),
    }
    if hosts is not None:
        across = Counter(collective.kind for collective in found if collective.crosses(hosts))
        result["collectives_across_hosts"] = dict(across)
    return result


def collectives(hlo: str) -> Iterator[Collective]:
    """Collective instructions in HLO text; an asynchronous pair counts once."""
    for line in hlo.splitlines():
        if match := _INSTRUCTION.search(line):
            kind = match["kind"]
            shapes = _shape_bytes(match["type"])
            # started, these two give (operands, results[, context])
            paired = match["start"] and kind in ("all-gather", "collective-permute")
            size = shapes[len(shapes) // 2] if paired and len(shapes) > 1 else sum(shapes)
            yield Collective(kind, size, _groups(line))


def _shape_bytes(text: str) -> list[int]:
    """Bytes of every array in an HLO type: 'f32[2,64]{1,0:T(2,128)}' -> [512]."""
    sizes = []
    for name, dimensions in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text):
        digits = re.search(r"\d+", name)
        bits = _BITS.get(name) or (int(digits[0]) if digits else 8)
        count = int(np.prod([int(d) for d in dimensions.split(",") if d]))
        sizes.append(count * bits // 8)
    return sizes


def _groups(line: str) -> np.ndarray | None:
    """replica_groups={{0,1},{2,3}} or the iota form [2,2]<=[4], [2,2]<=[2,2]T(1,0)."""
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]+\})\}", line):
        rows = re.findall(r"\{([\d, ]+)\}", match[1])
        return np.array([[int(x) for x in row.split(",")] for row in rows])
    pattern = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if match := re.search(pattern, line):
        shape, source = ([int(x) for x in part.split(",")] for part in match.group(1, 2))
        numbers = np.arange(np.prod(source)).reshape(source)
        if match[3]:
            numbers = numbers.transpose([int(x) for x in match[3].split(",")])
        return numbers.reshape(shape)
    return None
