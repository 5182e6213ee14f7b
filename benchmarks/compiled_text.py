"""Read the text of a program that XLA compiled: the bytes that its kernels and collectives move."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

BYTES = {
    "f64": 8,
    "s64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "u16": 2,
    "s16": 2,
    "pred": 1,
    "u8": 1,
    "s8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that read and write memory as kernels of their own.
KERNELS = (
    "fusion",
    "copy",
    "transpose",
    "custom-call",
    "reduce",
    "concatenate",
    "convert",
    "scatter",
    "sort",
    "gather",
    "pad",
    "slice",
)
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")
# Instructions that read a part of their first operand.
SLICES = ("slice", "dynamic-slice", "gather")
# Instructions whose results have the elements of their operand, each once.
SAME_ELEMENTS = ("bitcast", "convert", "copy", "reshape", "transpose")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
PARAMETER = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = \S+ parameter\((\d+)\)")
NAME = re.compile(r"%([\w.\-]+)")
# Characters of a shape and of the name of an operation that are shown.
SHAPE_WIDTH = 60
OPERATION_WIDTH = 70


class Instruction(NamedTuple):
    """A line of a computation: `name = shape kind(operands), attributes`."""

    name: str
    shape: str
    kind: str
    operands: list[str]
    attributes: str


class Traffic:
    """Bytes and calls in one execution of a program."""

    def __init__(self):
        # Bytes read and written by kernels, by "matmul", "attention" or "other".
        self.totals = Counter()
        # The kernels that are "other", by (name, shape, operation): bytes and calls.
        self.kernels = Counter()
        self.kernel_calls = Counter()
        # By (kind, shape): bytes of the whole arrays, and calls.
        self.collectives = Counter()
        self.collective_calls = Counter()
        # Matmuls by the work that cuBLAS does at their end.
        self.epilogues = Counter()


def read_traffic(text: str) -> Traffic:
    """The traffic of a program by its compiled text."""
    computations, entry = parse_computations(text)
    traffic = Traffic()
    for name, times in count_executions(computations, entry).items():
        shapes = {}
        for instruction in instructions(computations[name]):
            shapes[instruction.name] = instruction.shape
            operands = " ".join(shapes.get(operand, "") for operand in instruction.operands)
            kind = instruction.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                _add_collective(traffic, instruction.shape, kind, operands, times)
            elif instruction.kind in KERNELS:
                read = _bytes_read(instruction, shapes, computations)
                _add_kernel(traffic, instruction, read, times)
    return traffic


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape, such as "(bf16[2,3]{1,0}, f32[])"; 0 for unknown types."""
    total = 0
    for kind, dimensions in ARRAY.findall(shape):
        size = BYTES.get(kind, 0)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total


def split_async_shape(shape: str) -> tuple[str, str]:
    """(operands, results) of an asynchronous collective, "((operands), results)".

    Of other shapes all are results.
    """
    if not shape.startswith("(("):
        return "", shape
    depth = 0
    for at, character in enumerate(shape[1:], 1):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return shape[1 : at + 1], shape[at + 2 :]
    return "", shape


def parse_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the one that is the program."""
    computations = {}
    current = None
    entry = ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head and line.rstrip().endswith("{"):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current:
            computations[current].append(line)
    return computations, entry


def count_executions(computations: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation that is not part of a kernel runs in one execution."""
    times = Counter({entry: 1})
    remaining = [entry]
    while remaining:
        name = remaining.pop()
        for line in computations[name]:
            for other, calls in _called_by(line):
                if other in computations:
                    times[other] += times[name] * calls
                    remaining.append(other)
    return times


def instructions(lines: list[str]) -> Iterator[Instruction]:
    """The instructions of a computation."""
    for line in lines:
        if found := INSTRUCTION.match(line):
            name, shape, kind, operands, attributes = found.groups()
            yield Instruction(name, shape, kind, NAME.findall(operands), attributes)


def _called_by(line: str) -> list[tuple[str, int]]:
    """(computation, calls) for each computation that an instruction runs."""
    called = []
    body = re.search(r"\bwhile\(.*body=%?([\w.\-]+)", line)
    call = re.search(r"\b(?:call|async-start)\(.*(?:to_apply|calls)=%?([\w.\-]+)", line)
    branches = re.search(r"\bconditional\(.*branch_computations=\{([^}]*)\}", line)
    if body:
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        called.append((body[1], int(trips[1]) if trips else 1))
    elif call:
        called.append((call[1], 1))
    if branches:
        called += [(branch.strip(" %"), 1) for branch in branches[1].split(",")]
    return called


def _add_collective(traffic: Traffic, shape: str, kind: str, operands: str, times: int) -> None:
    before, after = split_async_shape(shape)
    # The array that all devices hold together, or that each of them holds.
    whole = (before or operands) if kind == "reduce-scatter" else after
    key = (kind, whole[:SHAPE_WIDTH])
    traffic.collectives[key] += times * shape_bytes(whole)
    traffic.collective_calls[key] += times


def _bytes_read(
    instruction: Instruction, shapes: dict[str, str], computations: dict[str, list[str]]
) -> int:
    """Bytes that a kernel reads of its operands, of which it may read a part only."""
    sizes = [shape_bytes(shapes.get(operand, "")) for operand in instruction.operands]
    called = re.search(r"\bcalls=%?([\w.\-]+)", instruction.attributes)
    if instruction.kind in SLICES and sizes:
        sizes[0] = min(sizes[0], shape_bytes(instruction.shape))
    elif called and called[1] in computations:
        shares = _shares_read(computations[called[1]])
        sizes = [size * shares.get(number, 1) for number, size in enumerate(sizes)]
    return round(sum(sizes))


def _shares_read(lines: list[str]) -> dict[int, float]:
    """The part that a fused computation reads of each of its parameters, by their numbers."""
    sizes = {}
    uses = defaultdict(list)
    for instruction in instructions(lines):
        sizes[instruction.name] = shape_bytes(instruction.shape)
        for position, operand in enumerate(instruction.operands):
            uses[operand].append((instruction, position))

    @cache
    def share(name: str) -> float:
        if not uses[name]:
            return 1.0
        total = 0.0
        for user, position in uses[name]:
            part = 1.0
            if user.kind in SAME_ELEMENTS:
                part = share(user.name)
            elif user.kind in SLICES and position == 0:
                part = share(user.name) * sizes[user.name] / (sizes[name] or 1)
            total += part
        return min(total, 1.0)

    return {int(found[2]): share(found[1]) for found in map(PARAMETER.match, lines) if found}


def _add_kernel(traffic: Traffic, instruction: Instruction, read: int, times: int) -> None:
    name, shape, _, _, attributes = instruction
    moved = times * (shape_bytes(shape) + read)
    if "dynamic_update_slice" in name:
        # Done in place: one layer of a stack is written, not all of it.
        layers = re.search(r"\[(\d+)", shape)
        moved //= int(layers[1]) if layers else 1
    target = re.search(r'custom_call_target="([^"]*)"', attributes)
    if "cublas" in attributes or "dynamic_slice_fusion" in name or "gemm" in name:
        traffic.totals["matmul"] += moved
        if epilogue := re.search(r'"epilogue":"(\w+)"', attributes):
            traffic.epilogues[epilogue[1]] += times
    elif target and "cudnn" in target[1]:
        traffic.totals["attention"] += moved
    else:
        operation = re.search(r'op_name="([^"]*)"', attributes)
        where = re.sub(r"layer_\d+", "layer", operation[1]) if operation else ""
        # Equal kernels of different layers count as one.
        key = (re.sub(r"[\d.]+$", "", name), shape[:SHAPE_WIDTH], where[-OPERATION_WIDTH:])
        traffic.totals["other"] += moved
        traffic.kernels[key] += moved
        traffic.kernel_calls[key] += times
