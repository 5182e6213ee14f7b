"""Estimate the time of a whole run, from measured speeds where there are any; its data and disk."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minigpt_jax.config import horizon_steps
from minigpt_jax.hardware import ACCELERATORS, MEASUREMENTS, Measurement
from minigpt_jax.memory import format_bytes, state_values
from minigpt_jax.mixture import rows_of_each, shares_of
from minigpt_jax.token_stream import MANIFEST, read_manifest
from minigpt_jax.tracking.durations import format_estimate

if TYPE_CHECKING:
    from minigpt_jax.model_config import GPTConfig

# The share of the peak FLOP/s that a device is assumed to reach where none was measured: less than
# all of MEASUREMENTS.
ASSUMED_SHARE = 0.4
# Bytes of a line of metrics.jsonl.
RECORD_BYTES = 370
# Bytes of a token in a shard.
TOKEN_BYTES = 2
# Rows and columns of the matrices whose product measures a CPU.
MATMUL_SIZE = 2048


def run_lines(c, config: "GPTConfig", device: str, devices: int, dtype: str) -> list[str]:
    """Lines about the whole run of the config `c`: steps, time and disk. `dtype`: of matmuls."""
    # In f32.
    checkpoint = 4 * state_values(config.parameters, config.matrix_parameters, c.optimizer.kind)
    disk = (
        f"disk         {format_bytes((c.save.keep + 2) * checkpoint)} for checkpoints of "
        f"{format_bytes(checkpoint)} ({c.save.keep} newest, the best, one being written)"
    )
    shares = shares_of(c.data.folder, c.data.mixture)
    rows = {folder: prepared_rows(folder, config.context) for folder in shares}
    if c.horizon.epochs and not all(rows.values()):
        epochs = f"{c.horizon.epochs:g} epochs of data, which train.py counts when it starts"
        return [*data_lines(shares, rows, None), f"time         {epochs}", disk]

    steps = horizon_steps(c.data.batch, config.context, sum(rows.values()), **c.horizon)
    tokens = steps * c.data.batch * config.context
    flops = tokens * config.flops_per_token
    lines = [f"run          {steps:,} steps, {tokens:,} tokens, {flops:.2g} FLOPs"]
    if c.optimizer.kind == "muon":
        own = steps * muon_flops(config)
        lines.append(f"{'':13}and {own / flops:.1%} more for Muon")
        flops += own
    return [
        *lines,
        *data_lines(shares, rows, steps * c.data.batch),
        *time_lines(flops, device, devices, dtype),
        f"{disk}, {format_bytes(RECORD_BYTES * steps)} for records, "
        f"{format_bytes(TOKEN_BYTES * tokens)} for that many tokens",
    ]


def prepared_rows(folder: str, context: int) -> int:
    """Rows of the training split in `folder` by its manifest; 0 where there is none yet."""
    if not (Path(folder) / MANIFEST).exists():
        return 0
    tokens = read_manifest(Path(folder))["splits"]["train"]["tokens"]
    return (tokens - 1) // context


def data_lines(
    shares: Mapping[str, int], rows: Mapping[str, int], rows_read: int | None
) -> list[str]:
    """A line for each folder: its part of the rows, its own rows, and epochs in `rows_read` rows.

    `rows_read` is None where it is not known.
    """
    counts = rows_of_each(rows_read or 0, list(shares.values()))
    lines = []
    for (folder, share), count in zip(shares.items(), counts, strict=True):
        line = f"{'' if lines else 'data':13}{folder}"
        if len(shares) > 1:
            line += f", {share / sum(shares.values()):.4g} of the rows"
        line += f": {rows[folder]:,} rows" if rows[folder] else ": not prepared yet"
        if rows[folder] and rows_read is not None:
            line += f", {count / rows[folder]:.2f} epochs"
        lines.append(line)
    return lines


def muon_flops(config: "GPTConfig") -> int:
    """Of Muon in a step, whatever its batch: `newton_schulz` of all matrices.

    A round takes 4 m^2 n + 2 m^3 for a matrix of m x n, m <= n. A layer has four of D x D and two
    of D x 4 D.
    """
    from minigpt_jax.muon import ROUNDS

    return ROUNDS * (4 * 6 + 2 * 18) * config.layers * config.embed**3


def time_lines(flops: float, device: str, devices: int, dtype: str) -> list[str]:
    """Lines about the time that `flops` take, and what it was estimated from."""
    peak_flops = device_flops(device, dtype, devices)
    source = "measured here with a large matmul" if device == "cpu" else "in the data sheet"
    measured = MEASUREMENTS.get(device)
    if measured and measured.dtype == dtype:
        share = measured_share(measured)
        reason = f"measured with GPT-2 124M, {measured.rows} x 1,024 tokens"
    else:
        share = ASSUMED_SHARE
        reason = f"{share:.0%} is assumed: {device} was not measured in {dtype}"
    time_needed = format_estimate(flops / (devices * peak_flops * share))
    peak = f"{peak_flops / 1e12:.3g} TFLOP/s"
    lines = [f"time         {time_needed} at {share:.0%} of {peak} {source}", f"{'':13}{reason}"]
    if devices > 1:
        lines.append(f"{'':13}the exchange between the {devices} devices is not counted")
    return lines


def measured_share(measured: Measurement) -> float:
    """The share of the peak FLOP/s that the training of GPT-2 124M reached."""
    from minigpt_jax.model_config import GPTConfig

    return measured.tokens_per_second * GPTConfig().flops_per_token / measured.peak_flops


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
