"""Print what a run will need before it starts: memory, time, disk, and the micro-batch that fits.

    python -m minigpt_jax.plan --config configs/pretrain.py --device h100 --devices 8

The memory is the estimate of memory.py, which train.py uses too. The time assumes a share of the
peak FLOP/s. JAX is imported after the arguments are checked, so that --help and errors come
immediately.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program(output_needed=True)  # before the imports below, which take time

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from minigpt_jax.config import FIELDS, horizon_steps, parse
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
from minigpt_jax.runtime.host_memory import host_bytes
from minigpt_jax.tracking.durations import format_estimate

if TYPE_CHECKING:
    from minigpt_jax.model import GPTConfig

REMAT_CHOICES = FIELDS["compute.remat"]
# Share of the peak FLOP/s that training is assumed to reach.
SHARE_OF_PEAK = 0.4
# Bytes of a line of metrics.jsonl.
RECORD_BYTES = 370
# Bytes of a token in a shard.
TOKEN_BYTES = 2
# Bytes of a parameter in a checkpoint: the parameter and both moments of AdamW, in f32.
CHECKPOINT_BYTES = 12
# Share of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION changes it.
JAX_MEMORY_FRACTION = 0.75
# Rows and columns of the matrices whose product measures a CPU.
MATMUL_SIZE = 2048


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
    options, rest = parser.parse_known_args()
    if options.devices < 1:
        raise InputError(f"--devices {options.devices}: expected 1 or more")
    print(plan(parse([sys.argv[0], *rest]), options.device, options.devices))


def plan(c, device: str, devices: int) -> str:
    """The table for the config `c` on `devices` devices."""
    from minigpt_jax.model import GPTConfig
    from minigpt_jax.sharding import mesh_sizes

    config = GPTConfig(**c.model)
    data, fsdp, tensor = mesh_sizes(devices, **c.mesh)
    settings = step_settings(c, device, devices)
    device_bytes = available_memory(device, devices)
    peak_flops = device_flops(device, settings.dtype, devices)
    data_parallel_size = data * fsdp
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
    memory = {remat: memory_of(remat, scatters[remat], size) for remat in REMAT_CHOICES}

    lines = [
        f"model        {config.parameters:,} parameters, {config.flops_per_token / 1e9:.2f} GFLOP "
        "per token (forward and backward)",
        f"devices      {devices} x {device}, {format_bytes(device_bytes)} for a run on each, "
        f"matmuls in {settings.dtype}; mesh data={data} fsdp={fsdp} tensor={tensor}",
        f"batch        {c.data.batch} rows of {config.context} tokens: {rows // size} x {size} "
        f"rows on each of {data_parallel_size} devices",
        "",
        *memory_table(memory, largest, size),
        "",
        *run_lines(c, config, device, devices, peak_flops),
    ]
    return "\n".join(lines)


def step_settings(c, device: str, devices: int) -> StepSettings:
    """What the memory of a step on `devices` devices depends on, by the rules of train.py."""
    from minigpt_jax.attention import choose_kernel
    from minigpt_jax.model import resolve_compute_dtype
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
        unroll=c.compute.unroll,
        fsdp=fsdp,
        tensor=tensor,
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


def run_lines(c, config: "GPTConfig", device: str, devices: int, peak_flops: float) -> list[str]:
    """Lines about the whole run: steps, time and disk. `peak_flops`: FLOP/s of one device."""
    checkpoint = CHECKPOINT_BYTES * config.parameters
    disk = (
        f"disk         {format_bytes((c.save.keep + 2) * checkpoint)} for checkpoints of "
        f"{format_bytes(checkpoint)} ({c.save.keep} newest, the best, one being written)"
    )
    if c.horizon.epochs:
        epochs = f"{c.horizon.epochs:g} epochs of data, which train.py counts when it starts"
        return [f"time         {epochs}", disk]

    steps = horizon_steps(c.data.batch, config.context, 0, **c.horizon)
    tokens = steps * c.data.batch * config.context
    flops = tokens * config.flops_per_token
    time_needed = format_estimate(flops / (devices * peak_flops * SHARE_OF_PEAK))
    peak = f"{peak_flops / 1e12:.3g} TFLOP/s"
    source = "measured here with a large matmul" if device == "cpu" else "in the data sheet"
    return [
        f"run          {steps:,} steps, {tokens:,} tokens, {flops:.2g} FLOPs",
        f"time         {time_needed} at {SHARE_OF_PEAK:.0%} of {peak} {source}",
        f"{disk}, {format_bytes(RECORD_BYTES * steps)} for records, "
        f"{format_bytes(TOKEN_BYTES * tokens)} for that many tokens",
    ]


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


def device_flops(device: str, dtype: str, devices: int) -> float:
    """Peak FLOP/s of one of `devices` devices for matmuls in `dtype`."""
    if device == "cpu":
        return measured_flops() / devices
    peak = ACCELERATORS[device].peak_flops
    # Matmuls of float32 arrays use TF32, which has half the rate.
    return peak if dtype == "bfloat16" else peak / 2


def measured_flops() -> float:
    """FLOP/s of a large matmul in f32 on this machine, the best of five."""
    a = np.ones((MATMUL_SIZE, MATMUL_SIZE), np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a, a)
        seconds.append(time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / min(seconds)


if __name__ == "__main__":
    exit_cleanly(main)
