"""Deterministic figures of a compiled step: FLOPs, bytes, memory, collectives."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mcl_jax.runtime import memory

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")


class Collective(NamedTuple):
    """One collective instruction of a device's program.

    Attributes:
      kind: one of KINDS.
      bytes: of its result on one device.
      replica_groups: int [groups, devices in each] numbers in mesh order; None: all devices at once.
    """

    kind: str
    bytes: int
    replica_groups: np.ndarray | None

    def crosses(self, hosts: Sequence[int]) -> bool:
        """Whether any of its groups has devices of different hosts (given per device)."""
        if self.replica_groups is None:
            return len(set(hosts)) > 1
        group_hosts = np.asarray(hosts)[self.replica_groups]
        return bool((group_hosts != group_hosts[:, :1]).any())


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
    cost, analysis = compiled.cost_analysis(), compiled.memory_analysis()
    every = list(collectives(compiled.as_text()))
    sizes: Counter[str] = Counter()
    for collective in every:
        sizes[collective.kind] += collective.bytes
    result = {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "argument_bytes": analysis.argument_size_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "peak_bytes": memory.peak_bytes(compiled),
        "collectives": dict(Counter(collective.kind for collective in every)),
        "collective_bytes": dict(sizes),
    }
    if hosts is not None:
        across = Counter(collective.kind for collective in every if collective.crosses(hosts))
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
    """int [groups, devices in each] of `replica_groups` in an HLO line; None: all at once.

    XLA writes them as {{0,1},{2,3}}, as an iota [2,2]<=[2,2]T(1,0), or (jaxlib 0.11) as axes of a
    mesh: mesh['a'=2,'b'=2] {'b'}. {} and no `replica_groups` mean all devices.

    Raises:
      ValueError: for another form; a wrong guess would be a wrong figure in every plan.
    """
    text = line.partition("replica_groups=")[2]
    if not text or text.startswith("{}"):
        return None
    if match := re.match(r"\{(\{[\d,{} ]+\})\}", text):
        rows = re.findall(r"\{([\d, ]+)\}", match[1])
        return np.array([_integers(row) for row in rows])
    if match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(*match.group(2, 3)).reshape(_integers(match[1]))
    if match := re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", text):
        return _mesh_groups(*match.groups())
    raise ValueError(f"replica groups of an unknown form: {text[:80]}")


def _integers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
    """'2,4', '1,0' -> the numbers 0 to 7 as [2, 4], transposed to [4, 2]."""
    numbers = np.arange(np.prod(_integers(shape))).reshape(_integers(shape))
    return numbers.transpose(_integers(order)) if order else numbers


def _mesh_groups(axes: str, devices: str | None, grouped: str) -> np.ndarray:
    """Devices that differ only along the grouped axes are one group.

    Args:
      axes: of the mesh with their sizes, slowest first: "'a'=4,'b'=2".
      devices: numbers in mesh order, "0,2,1,3" or the iota form "[2,2]T(1,0)"; None: 0, 1, 2, ...
      grouped: "'b'", "'a','b'", or a part of an axis: "'a':(2)2" is the part of size 2 whose
        slower parts of 'a' have 2 places.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'?([^',=]+)'?=(\d+)", axes)}
    pattern = r"'?([^',:]+)'?(?::\((\d+)\)(\d+))?(?:,|$)"
    chosen = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(pattern, grouped)
    ]
    shape: list[int] = []
    places = {}  # of the chosen parts in `shape`
    for name, size in sizes.items():
        divisor = 1
        for part in sorted(part for part in chosen if part[0] == name):
            shape += [part[1] // divisor, part[2]]
            places[part] = len(shape) - 1
            divisor = part[1] * part[2]
        shape.append(size // divisor)
    if devices is None:
        numbers = np.arange(np.prod(shape))
    elif match := re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", devices):
        numbers = _iota(*match.groups())
    else:
        numbers = np.array(_integers(devices))
    numbers = numbers.reshape(shape)
    group_axes = [places[part] for part in chosen]
    first = [place for place in range(len(shape)) if place not in group_axes]
    return numbers.transpose(first + group_axes).reshape(-1, int(np.prod([p[2] for p in chosen])))
