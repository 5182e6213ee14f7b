"""Masked next-token cross-entropy that never holds all logits, since [B, T, V] in f32 would outweigh the model.

The sequence is cut into chunks of time. Each chunk's logits live only long enough to give its loss and, when a
gradient is wanted, the gradient too: computing it in the forward pass saves the matrix product that a recomputation
would cost (Liger Kernel, Hsu et al. 2024, does the same on one GPU).
"""

from functools import partial

import jax
import jax.numpy as jnp


def logits(hidden: jax.Array, table: jax.Array, vocab_size: int) -> jax.Array:
    """[..., V] logits of `hidden` [..., D] in f32 at least; rows of `table` [V, D] beyond `vocab_size` give -inf."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return mask_padded_vocab(
        jnp.einsum(
            "...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=wide
        ),
        vocab_size,
    )


def mask_padded_vocab(scores: jax.Array, vocab_size: int) -> jax.Array:
    """`scores` [..., V] with -inf for ids that are none."""
    return jnp.where(_token_ids(scores) < vocab_size, scores, -jnp.inf)


def cross_entropy(
    hidden, table, targets, weights, *, vocab_size: int, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Sum of weighted losses (nats), and sum of weights.

    `hidden` [B, T, D], `table` [V, D], `targets` [B, T], `weights` [B, T]; `chunk`: at most so many positions of T have
    their logits in memory at once. Sums rather than a mean, so that parts of any weight can be added up exactly.
    """
    length = hidden.shape[1]
    chunk = next(c for c in range(min(chunk, length), 0, -1) if length % c == 0)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return _loss_sum(vocab_size, chunk, hidden, table, targets, weights), weights.sum(dtype=wide)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(vocab_size, chunk, hidden, table, targets, weights):
    def add(total, piece):
        h, t, w = piece
        scores = logits(h, table, vocab_size)
        return total + (w * (jax.nn.logsumexp(scores, axis=-1) - _chosen(scores, t))).sum(), None

    zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    return jax.lax.scan(add, zero, _chunks(chunk, hidden, targets, weights))[0]


def _forward(vocab_size, chunk, hidden, table, targets, weights):
    wide = jnp.promote_types(hidden.dtype, jnp.float32)

    def add(carry, piece):
        total, d_table = carry
        h, t, w = piece
        scores = logits(h, table, vocab_size)
        norm = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        total += (w * (norm[..., 0] - _chosen(scores, t))).sum()
        hit = _token_ids(scores) == t[..., None]
        d_scores = ((jnp.exp(scores - norm) - hit) * w[..., None]).astype(h.dtype)
        d_h = jnp.einsum(
            "btv,vd->btd", d_scores, table.astype(h.dtype), preferred_element_type=wide
        )
        d_table += jnp.einsum("btv,btd->vd", d_scores, h, preferred_element_type=wide)
        return (total, d_table), d_h.astype(h.dtype)

    start = (jnp.zeros((), wide), jnp.zeros(table.shape, wide))
    (total, d_table), d_hidden = jax.lax.scan(add, start, _chunks(chunk, hidden, targets, weights))
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    return total, (d_hidden, d_table.astype(table.dtype))


def _backward(vocab_size, chunk, gradients, d_total):
    d_hidden, d_table = gradients
    return (
        d_hidden * d_total.astype(d_hidden.dtype),
        d_table * d_total.astype(d_table.dtype),
        None,
        None,
    )


_loss_sum.defvjp(_forward, _backward)


def _token_ids(scores):
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _chosen(scores, targets):
    return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


def _chunks(chunk, hidden, targets, weights):
    """[B, T, ...] -> [T/chunk, B, chunk, ...]: cutting time, not rows, leaves each row on its device."""
    cut = (a.reshape(a.shape[0], -1, chunk, *a.shape[2:]) for a in (hidden, targets, weights))
    return tuple(jnp.moveaxis(a, 1, 0) for a in cut)
