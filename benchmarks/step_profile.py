"""Where a step goes: the time of a GPU's kernels by part of the model, from a trace of JAX."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
from jax.profiler import ProfileData

from benchmarks.compiled_text import instructions, parse_computations
from benchmarks.contenders import table

# A kernel belongs to the first part whose pattern is found in its own name, or in the name that the
# compiled text has for the operation: the path of modules and functions that it comes from.
PARTS = (
    ("matmuls", r"nvjet|cublas|gemm|cutlass|splitK", ""),
    ("attention", r"sdpa|cudnn|flash", ""),
    ("loss", r"^cross_entropy", r"cross_entropy"),
    ("LayerNorm, residual", r"^layer_norm", r"/ln_\w"),
    ("GELU, biases of the MLP", "", r"/mlp/"),
    ("q, k, v: cut, joined, biases", "", r"/attention/"),
    ("embedding", "", r"jvp\(GPT\)+/(?!GPT)"),
    ("optimizer, gradient norm", "", r"^jit\(step\)/(?!gradients)"),
    ("copies", r"Memcpy|Memset|copy|slice|transpose|concatenate|broadcast|convert", ""),
)
OTHER = "other"
STEPS = 3


def step_times(run: Callable[[int], object], compiled_text: str) -> dict[str, float]:
    """Milliseconds of the kernels of a step, by part. `run(n)` does n steps and waits for them."""
    run(1)
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(STEPS)
        (path,) = Path(folder).rglob("*.xplane.pb")
        kernels = list(kernels_of(ProfileData.from_file(str(path))))
    times = times_by_part(kernels, operation_names(compiled_text))
    return {part: nanoseconds / STEPS / 1e6 for part, nanoseconds in times.items()}


def kernels_of(profile: Any) -> Iterable[tuple[str, float]]:
    """Name and nanoseconds of everything that a GPU did, by a `jax.profiler.ProfileData`."""
    for plane in profile.planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    yield from ((event.name, event.duration_ns) for event in line.events)


def operation_names(compiled_text: str) -> dict[str, str]:
    """The path of the operation that each kernel of a compiled program comes from."""
    names = {}
    computations, _ = parse_computations(compiled_text)
    for lines in computations.values():
        for instruction in instructions(lines):
            if found := re.search(r'op_name="([^"]*)"', instruction.attributes):
                # In a trace "fusion.12" is called "fusion_12".
                names[instruction.name.replace(".", "_")] = found[1]
    return names


def times_by_part(
    kernels: Iterable[tuple[str, float]], operations: Mapping[str, str]
) -> dict[str, float]:
    """The sum of the times of `kernels` (name, time) for each part that has any, largest first."""
    times: defaultdict[str, float] = defaultdict(float)
    for name, time in kernels:
        times[part_of(name, operations.get(name, ""))] += time
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def part_of(kernel: str, operation: str) -> str:
    """The part of PARTS that a kernel belongs to, or OTHER."""
    for part, of_kernel, of_operation in PARTS:
        if of_kernel and re.search(of_kernel, kernel):
            return part
        if of_operation and re.search(of_operation, operation):
            return part
    return OTHER


def profile_table(times: Mapping[str, float]) -> str:
    """The table "where a step goes"."""
    total = sum(times.values())
    rows = [[part, f"{time:.2f}", f"{time / total:.1%}"] for part, time in times.items()]
    return table(("where a step goes", "ms", "share"), [*rows, ["kernels", f"{total:.2f}", ""]])
