"""Causal attention for a CPU: one head at a time, so that its scores stay in the processor's cache. Without this file
training there takes longer, and nothing else changes.

The backward pass makes the scores again from their log-sum-exp, blocks of keys outermost (FlashAttention-2, Dao 2023), and
transposed, because most of its products are then of the kind that runs fast.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
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


attend.defvjp(_forward, _backward)


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
