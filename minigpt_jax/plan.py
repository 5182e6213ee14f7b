"""Say what will happen before it happens: memory, time and disk of a run, and the micro-batch that fits a device.

    python -m minigpt_jax.plan --config configs/pretrain.py --device h100 --devices 8

train.py asks the same functions before it compiles anything. The memory is an estimate, checked against XLA's own
account of compiled steps (tests/test_plan.py); the time is arithmetic from an assumed share of the peak.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from minigpt_jax.config import REMAT, horizon_steps, parse
from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.model import GPTConfig
from minigpt_jax.sharding import mesh_sizes
from minigpt_jax.tracking.run_log import PEAK_FLOPS

MARGIN = 0.15  # what the estimate may be wrong by
SHARE_OF_PEAK = 0.4  # that training reaches, where nothing was measured
RECORD = 290  # bytes of a line of metrics.jsonl
WIDENED = jax.__version_info__ < (0, 11)  # until then XLA kept bf16 in f32 on a CPU
JAX_TAKES = 0.75  # of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise

# Memory in GB, and the name in metrics.PEAK_FLOPS.
DEVICES = {
    "a100-40gb": (40, "A100"),
    "a100-80gb": (80, "A100"),
    "h100": (80, "H100"),
    "h200": (141, "H200"),
    "b200": (180, "B200"),
    "l40s": (48, "L40S"),
    "l4": (24, "L4"),
    "a10g": (24, "A10G"),
    "rtx4090": (24, "RTX 4090"),
    "rtx3090": (24, "RTX 3090"),
}


class Memory(NamedTuple):
    """Bytes of one device at the worst moment of a step."""

    state: float  # parameters and both moments of AdamW, f32
    gradients: float  # f32; twice where micro-batches are added up
    weights: float  # in the precision of the products
    kept: float  # from the forward to the backward pass
    working: float  # what one layer, or a chunk of logits, needs for itself

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def step_memory(
    config: GPTConfig,
    *,
    rows: int,
    accum: int,
    dtype: str,
    remat: str,
    scores: bool,
    chunk: int,
    cpu: bool,
    cut: int = 1,
    tensor: int = 1,
) -> Memory:
    """Estimate for a step of `accum` micro-batches of `rows` rows on each device.

    `dtype`: of the products; `scores`: whether attention holds those of all its queries; `chunk`: positions whose logits are in
    memory at once; `cut`: devices that share one set of parameters (mesh.fsdp * mesh.tensor), `tensor` of them within a layer.
    """
    d, tokens, vocab = config.embed, rows * config.context, config.padded_vocab / tensor
    half = dtype == "bfloat16"
    size = 2 if half and not (cpu and WIDENED) else 4
    parameters = config.parameters + (config.padded_vocab - config.vocab_size) * d
    matrices = 12 * config.layers * d**2
    # A layer keeps its input, what both norms and the GELU give, q, k, v, the attended values, and what the GELU takes.
    elements = {"none": 15 * d / tensor, "dots": 9 * d / tensor, "full": d}[remat]
    held = 2 * config.heads * config.context * tokens * 4 / tensor if scores else 0
    layer = held + 3 * tokens * config.mlp * 4 / tensor
    logits = rows * min(chunk, config.context) * vocab * (8 + size)
    return Memory(
        state=12 * parameters / cut,
        gradients=4 * parameters / cut * (2 if accum > 1 else 1),
        weights=(matrices / tensor * size if half and remat == "none" else 0) + vocab * d * size,
        kept=tokens * config.layers * elements * size,
        working=max(layer, logits) + vocab * d * 4,
    )


def largest(limit: int, room: float, bytes_of: Callable[[int], float]) -> int:
    """The most rows up to `limit` that divide it and whose `bytes_of` fit into `room`; 0 where not even one does."""
    return next(
        (rows for rows in range(limit, 0, -1) if limit % rows == 0 and bytes_of(rows) <= room), 0
    )


def accumulation(
    batch: int,
    shards: int,
    *,
    micro_batch: int,
    device_bytes: float,
    bytes_of: Callable[[int], float],
) -> int:
    """Number A of micro-batches that `batch` rows on `shards` devices are cut into.

    `micro_batch` rows a device are computed at once; 0: the most that fit `device_bytes`, where `bytes_of` rows are
    needed. Raises InputError where the parts do not come out even, and where they cannot fit, with what would.
    """
    if batch % shards:
        raise InputError(
            f"data.batch {batch} must be a multiple of the {shards} devices it is spread over: try {-(-batch // shards) * shards}"
        )
    rows = batch // shards
    fitting = largest(rows, device_bytes / (1 + MARGIN), bytes_of)
    micro = micro_batch or fitting or 1
    if rows % micro:
        unit = micro * shards
        raise InputError(
            f"data.batch {batch} must be a multiple of data.micro_batch {micro} x devices {shards}: try {-(-batch // unit) * unit}"
        )
    if bytes_of(micro) * (1 - MARGIN) > device_bytes:
        remedy = (
            f"data.micro_batch {fitting} fits"
            if fitting
            else "not even one row fits: try compute.remat=full, more mesh.fsdp or a smaller model"
        )
        raise InputError(
            f"{micro} rows at once need about {_gb(bytes_of(micro))} on a device that has {_gb(device_bytes)}: {remedy}"
        )
    return rows // micro


def host_bytes() -> float:
    """Memory that a run on a CPU may take: half of the machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


# ---- the command


def main() -> None:
    """Print the plan of a config."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.plan",
        description="What a run will need. Takes train.py's arguments too.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device",
        choices=[*DEVICES, "cpu"],
        default="cpu",
        help="default: this machine's CPU, whose speed is measured",
    )
    parser.add_argument("--devices", type=int, default=1, help="how many of them (default: 1)")
    options, rest = parser.parse_known_args()
    if options.devices < 1:
        raise InputError(f"--devices {options.devices}: expected 1 or more")
    print(describe(parse([sys.argv[0], *rest]), options.device, options.devices))


def describe(c, device: str, devices: int) -> str:
    """The table of the config `c` on `devices` devices."""
    config = GPTConfig(**c.model)
    data, fsdp, tensor = mesh_sizes(devices, **c.mesh)
    shards = data * fsdp
    dtype = c.compute.dtype.replace(
        "auto", "float32" if device == "cpu" else "bfloat16"
    )  # as model.product_dtype, without asking for devices
    room, peak = _device(device, dtype, devices)
    how = {
        "dtype": dtype,
        "cpu": device == "cpu",
        "scores": c.compute.attention == "xla"
        or (devices > 1 if device == "cpu" else dtype != "bfloat16"),
        "chunk": c.loss.chunk,
        "cut": fsdp * tensor,
        "tensor": tensor,
    }
    rows = c.data.batch // shards

    def bytes_of(remat: str, micro: int) -> Memory:
        return step_memory(config, rows=micro, accum=rows // micro, remat=remat, **how)

    # Parts that do not come out even are refused as train.py would; what does not fit is what the table is for.
    accumulation(
        c.data.batch,
        shards,
        micro_batch=c.data.micro_batch,
        device_bytes=math.inf,
        bytes_of=lambda m: bytes_of(c.compute.remat, m).total,
    )
    fitting = {
        remat: largest(rows, room / (1 + MARGIN), lambda m, remat=remat: bytes_of(remat, m).total)
        for remat in REMAT
    }
    micro = c.data.micro_batch or fitting[c.compute.remat] or 1
    columns = {remat: bytes_of(remat, micro) for remat in REMAT}
    tokens_a_step = c.data.batch * config.context
    lines = [
        f"model        {config.parameters:,} parameters, {config.flops_per_token / 1e9:.2f} GFLOP a token (forward and backward)",
        f"devices      {devices} x {device}, {_gb(room)} for a run on each, products in {dtype}; mesh data={data} fsdp={fsdp} tensor={tensor}",
        f"batch        {c.data.batch} rows of {config.context} tokens: {rows // micro} x {micro} rows on each of {shards} devices",
        "",
        f"{'memory of a device, remat':<28}" + "".join(f"{remat:>10}" for remat in REMAT),
    ]
    names = (
        "parameters and moments",
        "gradients",
        "weights for products",
        "kept for the backward pass",
        "a layer, or logits",
    )
    lines += [
        f"{name:<28}" + "".join(f"{_gb(m[i]):>10}" for m in columns.values())
        for i, name in enumerate(names)
    ]
    lines += [
        f"{'together, ' + str(micro) + ' rows at once':<28}"
        + "".join(f"{_gb(m.total):>10}" for m in columns.values())
    ]
    lines += [
        f"{'largest micro-batch':<28}"
        + "".join(f"{fitting[remat] or 'none':>10}" for remat in REMAT),
        "",
    ]
    checkpoint = 12 * config.parameters
    disk = f"disk         {_gb((c.save.keep + 2) * checkpoint)} for checkpoints of {_gb(checkpoint)} ({c.save.keep} newest, the best, one on its way)"
    if c.horizon.epochs:
        lines += [
            f"time         {c.horizon.epochs:g} epochs of data that train.py counts when it starts",
            disk,
        ]
        return "\n".join(lines)
    steps = horizon_steps(c.data.batch, config.context, 0, **c.horizon)
    tokens = steps * tokens_a_step
    flops = tokens * config.flops_per_token
    source = "measured here for large products" if device == "cpu" else "of the data sheet"
    seconds = flops / (peak * devices * SHARE_OF_PEAK)
    lines += [
        f"run          {steps:,} steps, {tokens:,} tokens, {flops:.2g} FLOPs",
        f"time         {_duration(seconds)} at {SHARE_OF_PEAK:.0%} of {peak / 1e12:.3g} TFLOP/s {source}",
        f"{disk}, {_gb(RECORD * steps)} for records, {_gb(2 * tokens)} for as many tokens",
    ]
    return "\n".join(lines)


def _device(name: str, dtype: str, devices: int) -> tuple[float, float]:
    """Bytes for a run, and FLOP/s in `dtype`, of one of `devices`."""
    if name == "cpu":
        return host_bytes() / devices, _measured_flops() / devices  # they share the machine
    size, kind = DEVICES[name]
    peak = PEAK_FLOPS[kind]
    told = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", str(JAX_TAKES))
    try:
        share = float(told)
    except ValueError:
        raise InputError(f"XLA_PYTHON_CLIENT_MEM_FRACTION={told} is no number") from None
    return (
        size * 1e9 * share,
        peak if dtype == "bfloat16" else peak / 2,
    )  # f32 means TF32, at half the rate


def _measured_flops(size: int = 2048) -> float:
    """FLOP/s of a product of `size` x `size` in f32 on this machine, the best of five."""
    a = np.ones((size, size), np.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        np.matmul(a, a)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 86400:.1f} days"
        if seconds > 2 * 86400
        else f"{seconds / 3600:.1f} hours"
        if seconds > 7200
        else f"{seconds / 60:.0f} minutes"
    )


if __name__ == "__main__":
    exit_cleanly(main)
