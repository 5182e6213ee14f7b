"""Print what a run will need before it starts: memory, time, disk, and the micro-batch that fits.

    python -m minigpt_jax.plan --config configs/pretrain.py --device h100 --devices 8

The memory is the estimate of memory.py, which train.py uses too; with --compile, that of XLA stands
beside it. The time is that of run_costs.py. JAX is imported after the arguments are checked, so
that --help and errors come immediately.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program(output_needed=True)  # before the imports below, which take time

import argparse
import math
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from minigpt_jax.config import parse
from minigpt_jax.config_fields import FIELDS
from minigpt_jax.described_gpu import prepare_environment
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import ACCELERATORS, MIN_COMPUTE_CAPABILITY, Device
from minigpt_jax.memory import (
    Memory,
    StepSettings,
    choose_accumulation_steps,
    format_bytes,
    largest_micro_batch,
    scatters_each,
    step_memory,
)
from minigpt_jax.run_costs import run_lines
from minigpt_jax.runtime.gpus import count_gpus
from minigpt_jax.runtime.host_memory import host_bytes

if TYPE_CHECKING:
    from minigpt_jax.compiled_step import Target

REMAT_CHOICES = FIELDS["compute.remat"]
# Share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION changes it.
JAX_MEMORY_FRACTION = 0.75


class StepPlan(NamedTuple):
    """How a device goes through its rows of a step, and the memory that it needs."""

    settings: StepSettings
    data_parallel_size: int
    # Rows of a device in a step, and in a micro-batch.
    rows: int
    micro_batch: int
    # What a run can use on a device.
    device_bytes: float
    # By remat: what the micro-batch needs, and the largest micro-batch that fits.
    memory: dict[str, Memory]
    largest: dict[str, int]


def main() -> None:
    """Print the plan of a config."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.plan",
        description="Print what a run will need. Takes the arguments of train.py too.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device",
        choices=[*ACCELERATORS, "cpu"],
        default="cpu",
        help="default: this machine's CPU, whose speed is measured",
    )
    parser.add_argument("--devices", type=int, default=1, help="number of devices (default: 1)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the step too, and print the memory that XLA says it needs",
    )
    options, rest = parser.parse_known_args()
    if options.devices < 1:
        raise InputError(f"--devices {options.devices}: expected 1 or more")
    c = parse([sys.argv[0], *rest])
    target_or_nothing = nullcontext()
    if options.compile:
        target_or_nothing = target_for(options.device, options.devices, c.deterministic)
    # Where this machine cannot compile for the target, this is said before anything else.
    with target_or_nothing as target:
        step = plan_step(c, options.device, options.devices)
        print(plan(c, step, options.device, options.devices), flush=True)
        if target:
            print("", *compiled_lines(c, step, target), sep="\n")


def target_for(device: str, devices: int, deterministic: bool) -> AbstractContextManager["Target"]:
    """What --compile compiles for, see `compilation_target`. Call it before JAX is imported."""
    if "jax" not in sys.modules:
        if device == "cpu" or not count_gpus(os.environ).visible:
            prepare_environment()
        # Nothing runs, so no memory of a GPU that is here should be taken from other programs.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from minigpt_jax.compiled_step import compilation_target
    from minigpt_jax.runtime.startup import set_xla_flags

    # As in train.py.
    set_xla_flags(deterministic=deterministic)

    return compilation_target(device, devices)


def plan_step(c, device: str, devices: int) -> StepPlan:
    """The micro-batches of the config `c` on `devices` devices, by the rules of train.py."""
    from minigpt_jax.model_config import GPTConfig
    from minigpt_jax.sharding import AXES, check_divides, mesh_sizes

    config = GPTConfig(**c.model)
    sizes: dict[str, int] = dict(zip(AXES, mesh_sizes(devices, **c.mesh), strict=True))
    check_divides(sizes, config.dimensions)
    settings = step_settings(c, device, devices)
    device_bytes = available_memory(device, devices)
    data_parallel_size = sizes["data"] * sizes["fsdp"]
    rows = c.data.batch // data_parallel_size

    def memory_of(remat: str, scatter_each: bool, size: int) -> Memory:
        own = settings._replace(remat=remat, scatter_each=scatter_each)
        return step_memory(config, own, rows=size, accumulation_steps=rows // size)

    # Rows that cannot be divided evenly are refused, as in train.py. What does not fit is shown.
    choose_accumulation_steps(
        c.data.batch,
        data_parallel_size,
        micro_batch=c.data.micro_batch,
        device_bytes=math.inf,
        bytes_of=lambda size: memory_of(settings.remat, False, size).total,
    )
    largest = {}
    scatters = {}
    for remat in REMAT_CHOICES:

        def bytes_of(scatter_each: bool, size: int, remat: str = remat) -> float:
            return memory_of(remat, scatter_each, size).total

        scatters[remat] = scatters_each(rows, c.data.micro_batch, device_bytes, bytes_of)
        largest[remat] = largest_micro_batch(rows, device_bytes, partial(bytes_of, scatters[remat]))
    size = c.data.micro_batch or largest[settings.remat] or 1
    return StepPlan(
        settings._replace(scatter_each=scatters[settings.remat]),
        data_parallel_size,
        rows,
        size,
        device_bytes,
        {remat: memory_of(remat, scatters[remat], size) for remat in REMAT_CHOICES},
        largest,
    )


def plan(c, step: StepPlan, device: str, devices: int) -> str:
    """The table for the config `c` on `devices` devices."""
    from minigpt_jax.model_config import GPTConfig
    from minigpt_jax.sharding import mesh_sizes

    config = GPTConfig(**c.model)
    data, fsdp, tensor = mesh_sizes(devices, **c.mesh)
    dtype = step.settings.dtype
    size = step.micro_batch
    number = step.rows // size
    lines = [
        f"model        {config.parameters:,} parameters, {config.flops_per_token / 1e9:.2f} GFLOP "
        "per token (forward and backward)",
        f"devices      {devices} x {device}, {format_bytes(step.device_bytes)} for a run on each, "
        f"matmuls in {dtype}; mesh data={data} fsdp={fsdp} tensor={tensor}",
        f"batch        {c.data.batch} rows of {config.context} tokens: {number} x {size} rows on "
        f"each of {step.data_parallel_size} devices",
        "",
        *memory_table(step.memory, step.largest, size),
        "",
        *run_lines(c, config, device, devices, dtype),
    ]
    return "\n".join(lines)


def compiled_lines(c, step: StepPlan, target: "Target") -> list[str]:
    """Lines that compare the estimated memory with that of the step compiled for `target`."""
    from minigpt_jax.compiled_step import compile_step

    found = compile_step(
        c,
        target,
        accumulation_steps=step.rows // step.micro_batch,
        scatter_each=step.settings.scatter_each,
    )
    remat = step.settings.remat
    estimate = step.memory[remat]
    total = found.arguments + found.temporaries
    table = {
        "arguments": (estimate.state, found.arguments),
        "temporaries": (estimate.total - estimate.state, found.temporaries),
        f"total, of {format_bytes(step.device_bytes)}": (estimate.total, total),
    }
    lines = [f"{f'compiled, remat {remat}':<28}{'estimate':>10}{'XLA':>10}{'difference':>12}"]
    for label, (estimated, by_xla) in table.items():
        # Rounded first: "-0.0%" would look like a difference.
        difference = round((estimated - by_xla) / by_xla, 3) + 0
        cells = f"{format_bytes(estimated):>10}{format_bytes(by_xla):>10}{difference:>+12.1%}"
        lines.append(f"{label:<28}{cells}")
    lines.append(f"compiled in {found.seconds:.0f} s for {target.origin}")
    if total > step.device_bytes:
        lines.append("it does not fit: lower data.micro_batch, compute.remat=full or mesh.fsdp")
    return lines


def step_settings(c, device: str, devices: int) -> StepSettings:
    """What the memory of a step on `devices` devices depends on, by the rules of train.py."""
    from minigpt_jax.attention import choose_kernel
    from minigpt_jax.hardware import resolve_compute_dtype
    from minigpt_jax.kernel_choice import has_kernels
    from minigpt_jax.sharding import mesh_sizes

    kind = Device("cpu") if device == "cpu" else Device("gpu", MIN_COMPUTE_CAPABILITY)
    dtype = resolve_compute_dtype(c.compute.dtype, kind)
    kernel = choose_kernel(c.compute.attention, dtype, devices, kind)
    _, fsdp, tensor = mesh_sizes(devices, **c.mesh)
    return StepSettings(
        dtype=dtype,
        remat=c.compute.remat,
        attention=kernel,
        loss_chunk=c.loss.chunk,
        on_cpu=device == "cpu",
        has_kernels=has_kernels(kind, tensor),
        unroll=c.compute.unroll,
        fsdp=fsdp,
        tensor=tensor,
        optimizer=c.optimizer.kind,
    )


def memory_table(
    memory: Mapping[str, Memory], largest: Mapping[str, int], micro_batch: int
) -> list[str]:
    """Lines of the memory that a micro-batch needs, and of the largest one, by remat."""

    def line(label: str, cells: list) -> str:
        return f"{label:<28}" + "".join(f"{cell:>10}" for cell in cells)

    parts = {
        "parameters and moments": "state",
        "gradients": "gradients",
        "weights for matmuls": "weights",
        "kept for the backward pass": "activations",
        "a layer, or logits": "temporaries",
        f"total, micro-batch of {micro_batch}": "total",
    }
    lines = [line("memory of a device, remat", list(memory))]
    for label, part in parts.items():
        lines.append(line(label, [format_bytes(getattr(m, part)) for m in memory.values()]))
    lines.append(line("largest micro-batch", [size or "none" for size in largest.values()]))
    return lines


def available_memory(device: str, devices: int) -> float:
    """Bytes that a run can use on one of `devices` devices."""
    if device == "cpu":
        # Devices that are simulated on a CPU share its memory.
        return host_bytes() / devices
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", str(JAX_MEMORY_FRACTION))
    try:
        return ACCELERATORS[device].memory * float(fraction)
    except ValueError:
        raise InputError(f"XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}: expected a number") from None


if __name__ == "__main__":
    exit_cleanly(main)
