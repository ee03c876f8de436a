"""Where a compiled step's bytes are: every operation of the program, counted and told by its kind.

An operation reads its operands and writes its results, each once, in the tiles in which they lie in
memory. Of an array that a fusion only slices, the slices are read. XLA's own count, of which no
parts are given, goes by the same rule with a few exceptions; how far the two are apart is told.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mcl_jax.planning import hlo
from mcl_jax.planning.hlo import HloProgram, Instruction

# They give names to what lies in memory already.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
    ]
)
_MOVES = frozenset(["copy", "reshape", "slice", "pad", "concatenate", "broadcast", "transpose"])
_COLLECTIVES = frozenset(["all-reduce", "all-gather", "all-to-all", "reduce-scatter"])
_SLICES = frozenset(["slice", "dynamic-slice"])
# Parts of the step by the files that an operation was traced in; the first that fits.
_PARTS = (
    ("views", ("/mcl_jax/views/", "/mcl_jax/montage.py")),
    ("optimizer", ("/optax/", "/mcl_jax/optimizer.py")),
)
_NETWORK = (
    ("backbone", ("/backbone/",)),
    ("pyramid and head", ("/fpn/", "/head/")),
    ("MLPs and loss", ("/projector/", "Predictors", "/projector", "/predictor")),
)


class Operation(NamedTuple):
    """One operation of the program.

    Attributes:
      kind: 'part: what', e.g. 'backbone: convolution, forward'.
      name, source: of the instruction, see `hlo.Instruction`.
      read_bytes, written_bytes: in memory.
      padding: how many of both are no elements, but fill up tiles.
    """

    kind: str
    name: str
    source: str
    read_bytes: int
    written_bytes: int
    padding: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def account(text: str, compilers_bytes: float, longest: int) -> dict[str, Any]:
    """The bytes of a step by kind.

    Args:
      text: of the compiled program.
      compilers_bytes: XLA's total.
      longest: of how many single operations to tell.

    Returns:
      'kinds': a row for each, most bytes first, with 'kind', 'operations' (how many), 'bytes',
      'padding', and 'floor': what the kind takes from the rest of the step and hands to it, each
      array once and without padding, which is what it would move if it were one kernel;
      'longest': rows with 'name', 'kind', 'bytes', 'source'; 'bytes' of all; 'compilers_bytes'.
    """
    program = hlo.parse(text)
    operations = {x.name: x for x in _operations(program)}
    floors = _floors(program.computations[program.entry], operations)
    rows: dict[str, dict[str, Any]] = {}
    for x in operations.values():
        row = rows.setdefault(x.kind, dict(kind=x.kind, operations=0, bytes=0, padding=0))
        row["operations"] += 1
        row["bytes"] += x.bytes
        row["padding"] += x.padding
    for kind, row in rows.items():  # of an array that enters, a part may be read
        row["floor"] = min(floors[kind], row["bytes"] - row["padding"])
    by_bytes = sorted(operations.values(), key=lambda x: -x.bytes)
    return {
        "kinds": sorted(rows.values(), key=lambda row: -row["bytes"]),
        "longest": [
            {"name": x.name, "kind": x.kind, "bytes": x.bytes, "source": x.source}
            for x in by_bytes[:longest]
        ],
        "bytes": sum(row["bytes"] for row in rows.values()),
        "compilers_bytes": compilers_bytes,
    }


def as_text(totals: Mapping[str, Any]) -> str:
    """`account`'s result as a table."""

    def line(name: str, count: Any, row: Mapping[str, Any]) -> str:
        numbers = "".join(f"{row[key] / 1e9:>10.3f}" for key in ("bytes", "padding", "floor"))
        return f"  {name:<44}{count:>6}{numbers}"

    head = f"  {'GB per step':<44}{'number':>6}{'bytes':>10}{'padding':>10}{'floor':>10}"
    kinds = [line(row["kind"], row["operations"], row) for row in totals["kinds"]]
    apart = totals["bytes"] / totals["compilers_bytes"] - 1
    total = (
        f"  all: {totals['bytes'] / 1e9:.3f} GB; by XLA's own count "
        f"{totals['compilers_bytes'] / 1e9:.3f} ({apart:+.1%})"
    )
    longest = [
        f"  {row['bytes'] / 1e6:>8.1f} MB  {row['name'][:36]:<36}  {row['kind']}  <- "
        f"{row['source'][-70:]}"
        for row in totals["longest"]
    ]
    return "\n".join([head, *kinds, total, *longest])


def _operations(program: HloProgram) -> list[Operation]:
    entry = program.computations[program.entry]
    result = []
    for x in entry.values():
        if x.opcode in _FREE:
            continue
        arrays = [a for name in x.operands if name in entry for a in entry[name].arrays]
        full = sum(a.stored for a in arrays)
        dense = sum(a.bytes for a in arrays)
        read_bytes = _read(program, x, entry)
        # of what is read in part, the same part is padding
        padding = (full - dense) * read_bytes // max(full, 1)
        padding += sum(a.stored - a.bytes for a in x.arrays)
        result.append(
            Operation(
                _kind(program, x),
                x.name,
                source=x.source,
                read_bytes=read_bytes,
                written_bytes=x.stored,
                padding=padding,
            )
        )
    return result


def _read(program: HloProgram, x: Instruction, entry: Mapping[str, Instruction]) -> int:
    """Bytes that an operation reads."""
    operands = [entry[name] for name in x.operands if name in entry]
    if x.opcode in _SLICES:
        return x.stored
    inside = program.computations.get(x.called)
    if x.opcode != "fusion" or inside is None:
        return sum(operand.stored for operand in operands)
    names = {int(p.operands[0]): name for name, p in inside.items() if p.opcode == "parameter"}
    return sum(
        _read_of(inside, names[number], operand.stored) for number, operand in enumerate(operands)
    )


def _read_of(inside: Mapping[str, Instruction], name: str, full: int) -> int:
    """Bytes that a fusion reads of one of its values: slices, if it only slices it."""
    total = 0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read_of(inside, user.name, full)
        elif user.opcode in _SLICES:
            total += user.stored
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return full
    return min(total, full)


def _kind(program: HloProgram, x: Instruction) -> str:
    if x.opcode in _COLLECTIVES:
        return "collectives"
    part = _part(x, program.files)
    if direction := _convolution(program, x):
        return f"{part}: {direction}"
    if x.opcode in _MOVES:
        return f"{part}: moved in memory"
    return f"{part}: the rest"


def _part(x: Instruction, files: Mapping[int, Sequence[str]]) -> str:
    source = x.source
    for part, words in _NETWORK:
        if any(word in source for word in words):
            return part
    stack = files.get(x.frame, ())
    for part, places in _PARTS:
        if any(place in file for file in stack for place in places):
            return part
    return "train step"


def _convolution(program: HloProgram, x: Instruction) -> str:
    """'convolution, forward', '..., input gradient' or '..., kernel gradient'; '' for none."""
    if x.opcode == "convolution":
        inner = x
    else:
        convolutions = _inner_convolutions(program, x.called)
        if not convolutions:
            return ""
        inner = convolutions[0]
    if "transpose(jvp" not in x.source + inner.source:
        return "convolution, forward"
    # a kernel's gradient contracts the axis of images, which XLA then writes in a feature's place
    labels = inner.attributes.partition("dim_labels=")[2]
    of_kernel = labels.partition("b")[0].find("f") >= 0
    return f"convolution, {'kernel' if of_kernel else 'input'} gradient"


def _inner_convolutions(program: HloProgram, name: str) -> list[Instruction]:
    """Of a fused computation, and of what it calls."""
    convolutions = []
    for x in program.computations.get(name, {}).values():
        if x.opcode == "convolution":
            convolutions.append(x)
        elif x.called:
            convolutions += _inner_convolutions(program, x.called)
    return convolutions


def _floors(
    entry: Mapping[str, Instruction], operations: Mapping[str, Operation]
) -> dict[str, int]:
    """Per kind the bytes of the arrays that enter it and leave it, each once."""
    enters: dict[str, set[str]] = defaultdict(set)  # kind -> instructions
    leaves: dict[str, set[str]] = defaultdict(set)
    for x in entry.values():
        taker = operations[x.name].kind if x.name in operations else ""
        if x.opcode == "tuple" or taker:
            for name in x.operands:
                origin = _origin(entry, name)
                giver = operations[origin].kind if origin in operations else ""
                if giver != taker:
                    enters[taker].add(origin if len(entry[origin].arrays) == 1 else name)
                    leaves[giver].add(origin if len(entry[origin].arrays) == 1 else name)
    size = {name: sum(array.bytes for array in x.arrays) for name, x in entry.items()}
    return {
        kind: sum(size[name] for name in enters[kind] | leaves[kind])
        for kind in {x.kind for x in operations.values()}
    }


def _origin(entry: Mapping[str, Instruction], name: str) -> str:
    """The instruction that wrote what this one names."""
    while entry[name].opcode in ("bitcast", "get-tuple-element") and entry[name].operands:
        name = entry[name].operands[0]
    return name
