"""Masked next-token cross-entropy that never holds all logits: they would outweigh the model.

The sequence is cut into chunks of time. The logits of a chunk are kept only until its loss is known
and, where a gradient is needed, its gradient too: computing the gradient in the forward pass saves
the matmul of a recomputation (Liger Kernel, Hsu et al. 2024, does the same on one GPU).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int


def logits(
    hidden: Float[Array, "*N D"], table: Float[Array, "V D"], vocab_size: int | Int[Array, ""]
) -> Float[Array, "*N V"]:
    """`hidden` times the rows of `table`, in f32 at least; rows from `vocab_size` on give -inf."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    table = table.astype(hidden.dtype)
    scores = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=wide)
    return mask_padded_vocab(scores, vocab_size)


def mask_padded_vocab(
    scores: Float[Array, "*N V"], vocab_size: int | Int[Array, ""]
) -> Float[Array, "*N V"]:
    """`scores` with -inf for the rows that pad the embedding, which are no token ids."""
    return jnp.where(_token_ids(scores) < vocab_size, scores, -jnp.inf)


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array | np.ndarray, "B T"],
    weights: Float[Array | np.ndarray, "B T"],
    *,
    vocab_size: int,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weighted losses (nats), and sum of weights.

    Sums, not a mean, so that micro-batches of any weight can be added exactly. At most `chunk`
    positions of T have their logits in memory at the same time.
    """
    length = hidden.shape[1]
    chunk = next(c for c in range(min(chunk, length), 0, -1) if length % c == 0)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    with jax.named_scope("cross_entropy"):
        total = _loss_sum(vocab_size, chunk, hidden, table, targets, weights)
        return total, weights.sum(dtype=wide)  # pyright: ignore[reportReturnType] (of custom_vjp)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss_sum(vocab_size, chunk, hidden, table, targets, weights):
    def add(total, inputs):
        h, t, w = inputs
        scores = logits(h, table, vocab_size)
        losses = jax.nn.logsumexp(scores, axis=-1) - _at_targets(scores, t)
        return total + (w * losses).sum(), None

    zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    return jax.lax.scan(add, zero, _chunks(chunk, hidden, targets, weights))[0]


def _loss_sum_forward(vocab_size, chunk, hidden, table, targets, weights):
    """`_loss_sum`, and its gradients by `hidden` and `table`."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)

    def add(carry, inputs):
        total, d_table = carry
        h, t, w = inputs
        scores = logits(h, table, vocab_size)
        log_sum_exp = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        total += (w * (log_sum_exp[..., 0] - _at_targets(scores, t))).sum()
        is_target = _token_ids(scores) == t[..., None]
        d_scores = ((jnp.exp(scores - log_sum_exp) - is_target) * w[..., None]).astype(h.dtype)
        narrow_table = table.astype(h.dtype)
        d_h = jnp.einsum("btv,vd->btd", d_scores, narrow_table, preferred_element_type=wide)
        d_table += jnp.einsum("btv,btd->vd", d_scores, h, preferred_element_type=wide)
        return (total, d_table), d_h.astype(h.dtype)

    start = (jnp.zeros((), wide), jnp.zeros(table.shape, wide))
    chunks = _chunks(chunk, hidden, targets, weights)
    (total, d_table), d_hidden = jax.lax.scan(add, start, chunks)
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    return total, (d_hidden, d_table.astype(table.dtype))


def _loss_sum_backward(_vocab_size, _chunk, gradients, d_total):
    d_hidden, d_table = (g * d_total.astype(g.dtype) for g in gradients)
    return d_hidden, d_table, None, None


_loss_sum.defvjp(_loss_sum_forward, _loss_sum_backward)


def _token_ids(scores: Float[Array, "*N V"]) -> Int[Array, "*N V"]:
    """The index along the last dimension of each of `scores`."""
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _at_targets(
    scores: Float[Array, "B T V"], targets: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B T"]:
    return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


def _chunks(chunk: int, *arrays):
    """[B, T, ...] -> [T/chunk, B, chunk, ...]: a row stays on its device, as time is cut."""
    cut = (a.reshape(a.shape[0], -1, chunk, *a.shape[2:]) for a in arrays)
    return tuple(jnp.moveaxis(a, 1, 0) for a in cut)
