"""Every way in which attention is computed: cuDNN's kernel, plain XLA, one head at a time on a CPU, and over a KV cache.

The one-head-at-a-time path keeps the scores of a head in the processor's cache. Its backward pass
computes the scores again from their log-sum-exp, with blocks of keys in the outer loop
(FlashAttention-2, Dao 2023).
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

SHARED_SEGMENT = -1  # the segment that all others of its row see
MIN_BLOCK, MAX_BLOCKS = (
    128,
    8,
)  # attention where cuDNN does not do it: queries a block at least, and blocks at most
# What costs little is computed again in the backward pass, whatever `remat` says: keeping it would take more memory
# than the results of all matrix products together. (In a scan over layers XLA cannot undo this; prevent_cse adds nothing.)
recompute_in_backward = partial(jax.checkpoint, prevent_cse=False)


def attention_kernel(implementation: str, dtype: jax.typing.DTypeLike, devices: int) -> str:
    """The kernel that `implementation` means on this machine, for a mesh of `devices` devices."""
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    return choose_kernel(implementation, dtype, devices, device.platform, capability)


def choose_kernel(
    implementation: str,
    dtype: jax.typing.DTypeLike,
    devices: int,
    platform: str,
    compute_capability: str,
) -> str:
    """The kernel that `implementation` means on `devices` devices of this kind.

    "auto" means "cudnn" for 16 bits on Ampere and newer, "cpu" on a single CPU device, otherwise "xla",
    which alone stores [T, T] scores.
    """
    if implementation != "auto":
        return implementation
    # "9.0" on an H100, "gfx90a" on devices that are not NVIDIA's.
    major = compute_capability.partition(".")[0]
    is_half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if major.isdecimal() and int(major) >= 8 and is_half:
        return "cudnn"
    return "cpu" if platform == "cpu" and devices <= 1 else "xla"


def block_length(length: int) -> int:
    """How many of `length` positions attention takes at a time."""
    return max(MIN_BLOCK, math.ceil(length / MAX_BLOCKS))


@recompute_in_backward
def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Causal attention: softmax(q k^T / sqrt(K)) v of all positions up to each query's own, the softmax in f32 at least.

    `q`, `k`, `v` [B, T, H, K]; `visible` [B, T, T] or None: what each query may see of them. Queries are taken in blocks,
    each with the keys that it can see: half the work.
    """
    q, k, v = (swap_time_and_heads(a) for a in (q, k, v))
    length, block, parts = q.shape[2], block_length(q.shape[2]), []
    for start in range(0, length, block):
        end = min(start + block, length)
        seen = jnp.tri(end - start, end, start, dtype=bool)[None]
        if visible is not None:
            seen = seen & visible[:, start:end, :end]
        parts.append(attend_masked(q[:, :, start:end], k[:, :, :end], v[:, :, :end], seen))
    return swap_time_and_heads(jnp.concatenate(parts, axis=2))


def write_cache(old, new, positions):
    """`old` [B, H, S, K] with `new` [B, T, H, K] in the slots `positions` [B, T], where there are such."""
    if new.shape[1] > 1:
        return old.at[jnp.arange(len(old))[:, None], :, positions].set(new, mode="drop")
    # XLA copies the whole cache for a scatter, up to three times; a selection is made in place.
    return jnp.where(
        (jnp.arange(old.shape[2])[None] == positions)[:, None, :, None],
        swap_time_and_heads(new),
        old,
    )


def attend_masked(q, k, v, seen):
    """`q` [B, H, T, K]; `k`, `v` [B, H, S, K]; `seen` [B, T, S]."""
    wide = jnp.promote_types(
        q.dtype, jnp.float32
    )  # jax.nn's own would round float64 to float32 here
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=wide) / math.sqrt(
        q.shape[-1]
    )
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v)


def swap_time_and_heads(a):
    """[B, T, H, K] as [B, H, T, K], or back: a CPU is slower at products over heads in the middle."""
    return jnp.swapaxes(a, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_by_head(
    block: int, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v of all positions up to each query's own, the softmax in f32 at least.

    `q`, `k`, `v` [B, T, H, K]; `visible` [B, T, T] or None: what each query may see of them, itself always included;
    `block` of T are computed at a time.
    """
    return _forward(block, q, k, v, visible)[0]


def _forward(block, q, k, v, visible):
    y, norm = _by_head(partial(_attend_head, block), visible, q, k, v)
    return y, (q, k, v, visible, y, norm)


def _backward(block, kept, d_y):
    q, k, v, visible, y, norm = kept
    wide = norm.dtype
    share = (y.astype(wide) * d_y.astype(wide)).sum(
        -1, keepdims=True
    )  # of every query: what its softmax takes back
    return *_by_head(partial(_gradient_of_head, block), visible, q, k, v, norm, d_y, share), None


attend_by_head.defvjp(_forward, _backward)


def _by_head(function: Callable, visible, *arrays):
    """`function(visible of the row, arrays [T, ...] of the head)` for every row and head of `arrays` [B, T, H, ...]."""

    def row(parts):
        own, arrays = parts
        results = jax.lax.map(
            lambda head: function(own, *head), [jnp.swapaxes(a, 0, 1) for a in arrays]
        )
        return [jnp.swapaxes(a, 0, 1) for a in results]

    return jax.lax.map(row, (visible, arrays))


def _attend_head(block, visible, q, k, v):
    """Result [T, K] and log-sum-exp [T, 1] of the scores."""
    q, parts, norms = q / math.sqrt(q.shape[-1]), [], []
    for start, end in _blocks(block, len(q)):
        scores = _product("tk,sk->ts", q[start:end], k[:end])
        seen = jnp.tri(end - start, end, start, dtype=bool)
        if visible is not None:
            seen &= visible[start:end, :end]
        scores = jnp.where(seen, scores, -jnp.inf)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        parts.append(
            (_product("ts,sk->tk", weights.astype(v.dtype), v[:end]) / total).astype(v.dtype)
        )
        norms.append(top + jnp.log(total))
    return jnp.concatenate(parts), jnp.concatenate(norms)


def _gradient_of_head(block, visible, q, k, v, norm, d_y, share):
    """Gradients [T, K] by q, k and v."""
    norm, share, root = norm.T, share.T, math.sqrt(q.shape[-1])
    q, d_q, d_k, d_v = q / root, jnp.zeros(q.shape, norm.dtype), [], []
    for start, end in _blocks(
        block, len(q)
    ):  # of keys, with all queries that see them: everything here is [S, T]
        scores = _product("sk,tk->st", k[start:end], q[start:])
        seen = jnp.tri(len(q) - start, end - start, dtype=bool).T
        if visible is not None:
            seen &= visible[start:, start:end].T
        weights = jnp.where(seen, jnp.exp(scores - norm[:, start:]), 0)
        d_v.append(_product("st,tk->sk", weights.astype(v.dtype), d_y[start:]))
        d_weights = _product("sk,tk->st", v[start:end], d_y[start:])
        d_scores = (weights * (d_weights - share[:, start:])).astype(q.dtype)
        d_k.append(_product("st,tk->sk", d_scores, q[start:]))
        d_q = d_q.at[start:].add(_product("st,sk->tk", d_scores, k[start:end]))
    return (
        (d_q / root).astype(q.dtype),
        jnp.concatenate(d_k).astype(k.dtype),
        jnp.concatenate(d_v).astype(v.dtype),
    )


def _blocks(block: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def _product(dimensions: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        dimensions, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32)
    )
