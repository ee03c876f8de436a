"""A compiled program's text (HLO), read: instructions, their arrays, where they come from."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_TABLE_ROW = re.compile(r"(\d+) (?:\"(.*)\"|\{(.*)\})$")


class Array(NamedTuple):
    """One array of an instruction's type.

    Attributes:
      bytes: of its elements.
      stored: bytes that it takes in memory: a TPU pads the last axes to whole tiles.
    """

    bytes: int
    stored: int


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: unique in its computation.
      opcode: 'fusion', 'convolution', 'copy', ...
      arrays: of its result.
      operands: names; of a parameter its number.
      called: the computation that a fusion stands for; '' for none.
      source: JAX's name of what it was traced from.
      frame: number of the line of Python it was traced in, see `HloProgram.files`; 0: unknown.
      attributes: the text behind the operands.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: str
    source: str
    frame: int
    attributes: str

    @property
    def stored(self) -> int:
        """Bytes of its result in memory."""
        return sum(array.stored for array in self.arrays)


class HloProgram(NamedTuple):
    """A program of one device.

    Attributes:
      computations: name -> instructions by name, in their order.
      entry: name of the computation that is run.
      files: frame -> the Python files of its stack, innermost first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str
    files: dict[int, tuple[str, ...]]


def parse(text: str) -> HloProgram:
    """Reads what `jax.stages.Compiled.as_text` gives.

    Raises:
      ValueError: for a text without an entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    inside: dict[str, Instruction] = {}
    entry, tables, table = "", {}, {}
    for line in text.splitlines():
        if match := line[:1].isspace() and _INSTRUCTION.match(line):
            instruction = _instruction(*match.groups())
            inside[instruction.name] = instruction
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables[line] = {}
        elif row := _TABLE_ROW.match(line):
            table[int(row[1])] = row[2] or row[3]
        elif match := _COMPUTATION.match(line):
            inside = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("the program's text has no ENTRY computation")
    return HloProgram(computations, entry, _files(tables))


def arrays(kind: str) -> Iterator[Array]:
    """Of a type: 'f32[2,64]{1,0:T(8,128)}' -> (512 bytes, 4096 stored); a tuple has several."""
    for name, dimensions, layout in _ARRAY.findall(kind):
        digits = re.search(r"\d+", name)
        bits = int(digits[0]) if digits else 8
        shape = [int(size) for size in dimensions.split(",") if size]
        count = math.prod(shape)
        yield Array(count * bits // 8, math.prod(_padded(shape, layout)) * bits // 8)


def _padded(shape: list[int], layout: str) -> list[int]:
    """The shape with the axes that a tile covers filled up, slowest first."""
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    if not tile:
        return shape
    sides = [int(side) for side in tile[1].split(",")]
    axes = [shape[int(axis)] for axis in order.split(",") if axis][::-1]
    axes = [1] * (len(sides) - len(axes)) + axes
    first = len(axes) - len(sides)
    tiled = [-(-size // side) * side for size, side in zip(axes[first:], sides, strict=True)]
    return axes[:first] + tiled


def _instruction(name: str, kind: str, opcode: str, rest: str) -> Instruction:
    depth, end = 1, 0
    for end, character in enumerate(rest):  # noqa: B007
        depth += (character == "(") - (character == ")")
        if not depth:
            break
    inside, attributes = rest[:end], rest[end + 1 :]
    operands = (inside,) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", inside))
    called = re.search(r"calls=%?([\w.\-]+)", attributes)
    source = re.search(r'op_name="((?:[^"\\]|\\.)*)"', attributes)
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    return Instruction(
        name=name,
        opcode=opcode,
        arrays=tuple(arrays(kind)),
        operands=operands,
        called=called[1] if called else "",
        source=source[1] if source else "",
        frame=int(frame[1]) if frame else 0,
        attributes=attributes,
    )


def _files(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, ...]]:
    """Every frame's files. Parents are counted from the outermost's, which is no frame: 0 or 1."""

    def numbers(row: str) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}

    names = tables.get("FileNames", {})
    locations = {key: numbers(row) for key, row in tables.get("FileLocations", {}).items()}
    frames = {key: numbers(row) for key, row in sorted(tables.get("StackFrames", {}).items())}
    nobody = next((frame.get("parent_frame_id", 0) for frame in frames.values()), 0)
    files: dict[int, tuple[str, ...]] = {}
    for key, frame in frames.items():  # parents come first
        file = names[locations[frame["file_location_id"]]["file_name_id"]]
        files[key] = (file, *files.get(frame.get("parent_frame_id", 0) - nobody, ()))
    return files
