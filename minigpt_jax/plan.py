"""Choose what need not be chosen by hand: the micro-batch that fits a device, before anything is compiled."""

from minigpt_jax.errors import InputError
from minigpt_jax.model import GPTConfig

_FREE_SHARE = 0.4  # of a device's memory for activations: parameters, optimizer, gradients and logits need the rest


def activation_bytes(config: GPTConfig, *, itemsize: int, remat: str, fused_attention: bool) -> int:
    """Estimate of the bytes that one row keeps between its forward and its backward pass.

    Korthikanti et al. 2022: 17 D elements a token and layer, and 2.5 H T more unless attention is fused; rematerialised
    layers keep their input alone ("full") or about the products ("dots").
    """
    per_layer = {"none": 17, "dots": 9, "full": 1}[remat] * config.embed
    scores = 0 if fused_attention or remat == "full" else 2.5 * config.heads * config.context
    return int(config.layers * config.context * (per_layer + scores) * itemsize)


def accumulation(batch: int, shards: int, *, micro_batch: int, row_bytes: int, device_bytes: int | None) -> int:
    """Number A of micro-batches that `batch` rows on `shards` devices are cut into.

    `micro_batch` rows a device are computed at once; 0: the most that `device_bytes` has room for, or 8 GiB of
    activations where it is not known. Raises InputError where the parts do not come out even.
    """
    if batch % shards:
        raise InputError(f"data.batch {batch} must be a multiple of the {shards} devices it is spread over: try {-(-batch // shards) * shards}")
    rows = batch // shards
    if micro_batch == 0:
        room = int(device_bytes * _FREE_SHARE) if device_bytes else 8 * 2**30
        fitting = max(room // row_bytes, 1)
        micro_batch = next(m for m in range(min(rows, fitting), 0, -1) if rows % m == 0)
    if rows % micro_batch:
        unit = micro_batch * shards
        raise InputError(
            f"data.batch {batch} must be a multiple of data.micro_batch {micro_batch} x devices {shards}: try {-(-batch // unit) * unit}"
        )
    return rows // micro_batch
