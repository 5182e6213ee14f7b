"""Every way in which attention is computed, so that the model itself needs only two functions.

`attend` is causal self-attention over whole rows, by one of four kernels: cuDNN's on an NVIDIA
GPU, splash attention on a TPU (tpu_attention.py), plain XLA in blocks of queries, or one head at a
time on a CPU. `attend_with_cache` is attention over a KV cache.

The kernel for a CPU keeps the scores of a head in the processor's cache. Its backward pass computes
the scores again from their log-sum-exp, with blocks of keys in the outer loop (FlashAttention-2,
Dao 2023).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from minigpt_jax import hardware, tpu_attention
from minigpt_jax.errors import InputError

# The segment that all other segments of its row may attend to.
SHARED_SEGMENT = -1
# "xla" and "cpu" cut a row into at most MAX_BLOCKS blocks of at least MIN_BLOCK positions.
MIN_BLOCK = 128
MAX_BLOCKS = 8
# Elements of a layer's keys from which a GPU should take longer to write all keys and values again
# (one kernel, in bf16 8 bytes moved for each of them) than those of a token (two kernels): 8 MB at
# the speed of its memory, against an assumed 2 us for a kernel.
LARGE_CACHE = 2**20


def recompute_in_backward(function: Callable) -> Callable:
    """`function`, computed again in the backward pass instead of keeping its intermediate results.

    Applied, whatever `remat` is, to functions that take little time but would keep more than the
    results of all matmuls together.
    """
    # In a scan over layers XLA cannot merge the two computations, so prevent_cse would add nothing.
    return jax.checkpoint(function, prevent_cse=False)


class KVCache(NamedTuple):
    """Keys and values of one layer; slot s holds position s of each row's own sequence.

    Heads come before slots because matmuls read them in that order: XLA would copy any other order
    again for every token.
    """

    k: Float[Array | np.ndarray, "B H S K"]
    v: Float[Array | np.ndarray, "B H S K"]


def attention_kernel(implementation: str, dtype: DTypeLike, devices: int) -> str:
    """`choose_kernel` for this machine."""
    return choose_kernel(implementation, dtype, devices, hardware.this_device())


def choose_kernel(
    implementation: str, dtype: DTypeLike, devices: int, device: hardware.Device
) -> str:
    """The kernel for `implementation` on a mesh of `devices` such as `device`.

    "auto" takes the fastest. "xla" runs anywhere, but is the only one that keeps all scores
    [B, H, T, T] of a layer in memory. Raises InputError where the kernel named cannot run.
    """
    fits_cudnn = device.is_ampere_or_newer and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    # The fastest first: whether it can run, and what it needs.
    kernels = {
        "cudnn": (fits_cudnn, "bfloat16 and an NVIDIA GPU, Ampere or newer"),
        "splash": (device.platform == "tpu", "a TPU"),
        "cpu": (device.platform == "cpu" and devices <= 1, "a mesh of one CPU"),
        "xla": (True, ""),
    }
    if implementation == "auto":
        return next(kernel for kernel, (fits, _) in kernels.items() if fits)
    fits, need = kernels[implementation]
    if not fits:
        raise InputError(
            f"compute.attention={implementation} with compute.dtype={jnp.dtype(dtype)} on this "
            f"device ({device.platform}): it needs {need}; try compute.attention=auto"
        )
    return implementation


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segments: Int[Array, "B T"] | None,
    implementation: str,
) -> Float[Array, "B T H K"]:
    """Causal attention softmax(q k^T / sqrt(K)) v, with the softmax in f32 at least.

    With `segments`, a query attends only to its own segment and to SHARED_SEGMENT, which "splash"
    does not know. `implementation`: see `attention_kernel`.
    """
    mask = None if segments is None else segment_mask(segments)
    devices = jax.sharding.get_abstract_mesh().size
    kernel = attention_kernel(implementation, q.dtype, devices)
    with jax.named_scope(f"attention_{kernel}"):
        # A shorter row, such as the token that weights are made with, would be mostly padding.
        if kernel == "splash" and q.shape[1] >= tpu_attention.MIN_BLOCK:
            return tpu_attention.attend_with_splash(q, k, v, segments)
        if kernel == "cudnn":
            return _attend_with_cudnn(q, k, v, None if mask is None else mask[:, None])
        if kernel == "cpu":
            return attend_by_head(q, k, v, mask)
        return attend_in_blocks(q, k, v, mask)


def _attend_with_cudnn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    mask: Bool[Array, "B 1 T T"] | None,
) -> Float[Array, "B T H K"]:
    fused = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    is_inside_shard_map = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    heads = nn.logical_to_mesh_axes((None, None, "heads", None))
    by_xla = {axis for axis in heads or () if axis}
    if not (is_inside_shard_map and by_xla):
        return fused(q, k, v, mask=mask)
    # XLA cannot split cuDNN's kernel over one axis of a mesh while shard_map splits others.
    return jax.shard_map(
        lambda q, k, v, mask: fused(q, k, v, mask=mask),
        in_specs=(heads, heads, heads, PartitionSpec()),
        out_specs=heads,
        axis_names=by_xla,
        check_vma=False,
    )(q, k, v, mask)


def attend_with_cache(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    cache: KVCache,
    positions: Int[Array, "B T"],
) -> tuple[Float[Array, "B T H K"], KVCache]:
    """Attention of queries at `positions` to all slots up to their own.

    Also returns the cache, to which `k` and `v` were added first.
    """
    with jax.named_scope("attention_with_cache"):
        keys = _write(cache.k, k, positions)
        values = _write(cache.v, v, positions)
        # Slots are positions, so a causal mask is enough: a slot with old contents comes after the
        # position of every query, and is overwritten before a query may attend to it.
        mask = jnp.arange(keys.shape[2])[None, None] <= positions[:, :, None]
        q = swap_time_and_heads(q)
        y = _attend_masked(q, keys.astype(q.dtype), values.astype(q.dtype), mask)
        return swap_time_and_heads(y), KVCache(keys, values)


def segment_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which positions (last dimension) each position may attend to, before causality."""
    same = segments[:, :, None] == segments[:, None, :]
    return same | (segments == SHARED_SEGMENT)[:, None, :]


def block_length(length: int) -> int:
    """How many of `length` positions "xla" and "cpu" take at a time."""
    return max(MIN_BLOCK, math.ceil(length / MAX_BLOCKS))


def swap_time_and_heads(a: Float[Array, "B M N K"]) -> Float[Array, "B N M K"]:
    """[B, T, H, K] as [B, H, T, K], or back: on a CPU matmuls of the former are slower."""
    return jnp.swapaxes(a, 1, 2)


@recompute_in_backward
def attend_in_blocks(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    mask: Bool[Array, "B T T"] | None,
) -> Float[Array, "B T H K"]:
    """`attend` in blocks of queries, each with the keys up to its own end: about half the work."""
    q, k, v = (swap_time_and_heads(a) for a in (q, k, v))
    results = []
    for start, end in _blocks(q.shape[2]):
        block_mask = jnp.tri(end - start, end, start, dtype=bool)[None]
        if mask is not None:
            block_mask = block_mask & mask[:, start:end, :end]
        results.append(_attend_masked(q[:, :, start:end], k[:, :, :end], v[:, :, :end], block_mask))
    return swap_time_and_heads(jnp.concatenate(results, axis=2))


@jax.custom_vjp
def attend_by_head(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    mask: Bool[Array, "B T T"] | None,
) -> Float[Array, "B T H K"]:
    """`attend` for one head after the other, in blocks.

    `mask` must let every position attend to itself.
    """
    return _attend_by_head_forward(q, k, v, mask)[0]


def _attend_by_head_forward(q, k, v, mask):
    y, log_sum_exp = _map_heads(_head_forward, mask, q, k, v)
    return y, (q, k, v, mask, y, log_sum_exp)


def _attend_by_head_backward(residuals, d_y):
    q, k, v, mask, y, log_sum_exp = residuals
    wide = log_sum_exp.dtype
    # For the gradient of the softmax: d_scores is weights times (d_weights - delta).
    delta = (y.astype(wide) * d_y.astype(wide)).sum(-1, keepdims=True)
    return *_map_heads(_head_backward, mask, q, k, v, log_sum_exp, d_y, delta), None


attend_by_head.defvjp(_attend_by_head_forward, _attend_by_head_backward)


def _map_heads(function: Callable, mask, *arrays):
    """Map `function(mask, *arrays)` over rows and heads.

    For one head, the function receives [T, T] of `mask` [B, T, T] (or None), and [T, ...] of every
    array [B, T, H, ...].
    """

    def map_row(row):
        row_mask, row_arrays = row
        heads_first = [jnp.swapaxes(a, 0, 1) for a in row_arrays]
        results = jax.lax.map(lambda head: function(row_mask, *head), heads_first)
        return [jnp.swapaxes(a, 0, 1) for a in results]

    return jax.lax.map(map_row, (mask, arrays))


def _head_forward(
    mask: Bool[Array, "T T"] | None,
    q: Float[Array, "T K"],
    k: Float[Array, "T K"],
    v: Float[Array, "T K"],
) -> tuple[Float[Array, "T K"], Float[Array, "T 1"]]:
    """The output of one head, and the log-sum-exp of each query's scores."""
    q = q / math.sqrt(q.shape[-1])
    results = []
    log_sum_exps = []
    for start, end in _blocks(len(q)):
        scores = _einsum("tk,sk->ts", q[start:end], k[:end])
        block_mask = jnp.tri(end - start, end, start, dtype=bool)
        if mask is not None:
            block_mask &= mask[start:end, :end]
        scores = jnp.where(block_mask, scores, -jnp.inf)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1, keepdims=True)
        y = _einsum("ts,sk->tk", weights.astype(v.dtype), v[:end]) / total
        results.append(y.astype(v.dtype))
        log_sum_exps.append(largest + jnp.log(total))
    return jnp.concatenate(results), jnp.concatenate(log_sum_exps)


def _head_backward(
    mask: Bool[Array, "T T"] | None,
    q: Float[Array, "T K"],
    k: Float[Array, "T K"],
    v: Float[Array, "T K"],
    log_sum_exp: Float[Array, "T 1"],
    d_y: Float[Array, "T K"],
    delta: Float[Array, "T 1"],
) -> tuple[Float[Array, "T K"], Float[Array, "T K"], Float[Array, "T K"]]:
    """Gradients with respect to q, k and v of one head."""
    root = math.sqrt(q.shape[-1])
    q = q / root
    log_sum_exp = log_sum_exp.T
    delta = delta.T
    d_q = jnp.zeros(q.shape, log_sum_exp.dtype)
    d_k = []
    d_v = []
    # Blocks of keys, each with the queries from its start on: every matrix here is [keys, queries].
    for start, end in _blocks(len(q)):
        scores = _einsum("sk,tk->st", k[start:end], q[start:])
        block_mask = jnp.tri(len(q) - start, end - start, dtype=bool).T
        if mask is not None:
            block_mask &= mask[start:, start:end].T
        weights = jnp.where(block_mask, jnp.exp(scores - log_sum_exp[:, start:]), 0)
        d_v.append(_einsum("st,tk->sk", weights.astype(v.dtype), d_y[start:]))
        d_weights = _einsum("sk,tk->st", v[start:end], d_y[start:])
        d_scores = (weights * (d_weights - delta[:, start:])).astype(q.dtype)
        # This q is divided by `root` already; the gradient of the original q is divided at the end.
        d_k.append(_einsum("st,tk->sk", d_scores, q[start:]))
        d_q = d_q.at[start:].add(_einsum("st,sk->tk", d_scores, k[start:end]))
    return (
        (d_q / root).astype(q.dtype),
        jnp.concatenate(d_k).astype(k.dtype),
        jnp.concatenate(d_v).astype(v.dtype),
    )


def _attend_masked(
    q: Float[Array, "B H T K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    mask: Bool[Array, "#B T S"],
) -> Float[Array, "B H T K"]:
    # Not jax.nn.dot_product_attention, which rounds the softmax of float64 to float32.
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=wide)
    scores = scores / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v)


def _write(
    slots: Float[Array | np.ndarray, "B H S K"],
    new: Float[Array, "B T H K"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B H S K"]:
    """`slots` with `new` at `positions`; positions beyond S are dropped, not clamped."""
    # A new cache consists of NumPy arrays, which have no `.at`.
    slots = jnp.asarray(slots)
    new = new.astype(slots.dtype)
    if new.shape[1] > 1:
        return slots.at[jnp.arange(len(slots))[:, None], :, positions].set(new, mode="drop")
    if hardware.this_device().platform == "gpu" and slots.size > LARGE_CACHE:
        rows = jnp.arange(len(slots))[:, None]
        heads = jnp.arange(slots.shape[1])[None]
        return slots.at[rows, heads, positions].set(new[:, 0], mode="drop", unique_indices=True)
    # On a CPU, XLA copies the whole cache for a scatter, up to three times; `where` works in place.
    is_written = jnp.arange(slots.shape[2])[None] == positions
    return jnp.where(is_written[:, None, :, None], swap_time_and_heads(new), slots)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) position of each block of `length` positions."""
    block = block_length(length)
    for start in range(0, length, block):
        yield start, min(start + block, length)


def _einsum(dimensions: str, a: Array, b: Array) -> Array:
    """A matmul that returns f32 at least."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(dimensions, a, b, preferred_element_type=wide)
