"""Masked next-token cross-entropy without all logits in memory: they may be larger than the model.

Rows are cut into chunks of neighbouring positions. The logits of a chunk are in memory only until
its loss is computed. Where a gradient is needed, it is computed in the same pass, which saves the
matmul of a recomputation (Liger Kernel, Hsu et al. 2024, does the same on one GPU).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from minigpt_jax.kernel_choice import loss_kernels


def logits(
    hidden: Float[Array, "*N D"],
    table: Float[Array, "V D"],
    vocab_size: int | Int[Array, ""],
    cap: float | None = None,
) -> Float[Array, "*N V"]:
    """`hidden` times the rows of `table`, in f32 at least; rows from `vocab_size` on give -inf.

    With `cap`, what the matmul gives is brought between -cap and cap first (see `cap_logits`).
    """
    sum_dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    table = table.astype(hidden.dtype)
    scores = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=sum_dtype)
    return mask_padded_vocab(cap_logits(scores, cap), vocab_size)


def cap_logits(scores: Float[Array, "*N V"], cap: float | None) -> Float[Array, "*N V"]:
    """`cap` tanh(scores / cap) (Gemma 2, 2024) in f32 at least; where it is None, `scores`."""
    return scores if cap is None else cap * jnp.tanh(_widen(scores) / cap)


def mask_padded_vocab(
    scores: Float[Array, "*N V"], vocab_size: int | Int[Array, ""]
) -> Float[Array, "*N V"]:
    """`scores` with -inf where the row of the embedding is padding and not a token."""
    return jnp.where(_token_ids(scores) < vocab_size, scores, -jnp.inf)


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    vocab_size: int,
    chunk: int,
    cap: float | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weighted losses (nats), and sum of weights.

    Sums, not a mean, so that micro-batches of any weight can be added exactly. At most `chunk`
    positions of T have their logits in memory at the same time. `vocab_size`, `cap`: see `logits`.
    """
    length = hidden.shape[1]
    # Chunks of equal length, which divides T. A prime T above `chunk` makes chunks of 1 position.
    chunk = next(c for c in range(min(chunk, length), 0, -1) if length % c == 0)
    sum_dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    with jax.named_scope("cross_entropy"):
        total = _loss_sum(vocab_size, cap, chunk, hidden, table, targets, weights)
        weight = weights.sum(dtype=sum_dtype)
        return total, weight  # pyright: ignore[reportReturnType] (of custom_vjp)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss_sum(vocab_size, cap, chunk, hidden, table, targets, weights):
    table = table.astype(hidden.dtype)

    def add(total, inputs):
        h, t, w = inputs
        scores = logits(h, table, vocab_size, cap)
        chosen = jnp.take_along_axis(scores, t[..., None], axis=-1)[..., 0]
        return total + (w * (_log_sum_exp(scores) - chosen)).sum(), None

    zero = jnp.zeros((), jnp.promote_types(hidden.dtype, jnp.float32))
    return jax.lax.scan(add, zero, _chunks(chunk, hidden, targets, weights))[0]


def _loss_sum_forward(vocab_size, cap, chunk, hidden, table, targets, weights):
    """`_loss_sum`, and its gradients with respect to `hidden` and `table`."""
    sum_dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    # Once, not in every chunk.
    table_in_compute_dtype = table.astype(hidden.dtype)

    def add(carry, inputs):
        total, d_table = carry
        h, t, w = inputs
        losses, d_scores = _losses_and_gradient(h, table_in_compute_dtype, t, w, vocab_size, cap)
        total += (w * losses).sum()
        # A sum over the vocabulary, which devices may share: in f32 until it is whole.
        d_h = jnp.einsum(
            "btv,vd->btd", d_scores, table_in_compute_dtype, preferred_element_type=sum_dtype
        ).astype(h.dtype)
        d_table += jnp.einsum("btv,btd->vd", d_scores, h, preferred_element_type=sum_dtype)
        return (total, d_table), d_h

    start = (jnp.zeros((), sum_dtype), jnp.zeros(table.shape, sum_dtype))
    chunks = _chunks(chunk, hidden, targets, weights)
    (total, d_table), d_hidden = jax.lax.scan(add, start, chunks)
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    return total, (d_hidden, d_table.astype(table.dtype))


def _losses_and_gradient(hidden, table, targets, weights, vocab_size, cap):
    """The loss of each position, and the gradient of their weighted sum by the logits.

    The logits leave their matmul in the dtype of `hidden`, in bfloat16 half the bytes (autocast in
    PyTorch does so too); the softmax is computed in f32 at least.
    """
    scores = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=hidden.dtype)
    if kernels := loss_kernels(scores):
        flat = scores.reshape(-1, scores.shape[-1])
        losses, d_scores = kernels.cross_entropy_and_gradient(
            flat, targets.reshape(-1), weights.reshape(-1), vocab_size, cap
        )
        return losses.reshape(targets.shape), d_scores.reshape(scores.shape)
    capped = cap_logits(scores, cap)
    masked = mask_padded_vocab(capped, vocab_size)
    log_sum_exp = _log_sum_exp(masked)
    probabilities = jnp.exp(_widen(masked) - log_sum_exp[..., None])
    is_target = _token_ids(scores) == targets[..., None]
    d_scores = (probabilities - is_target) * weights[..., None]
    if cap is not None:
        d_scores *= 1 - jnp.square(capped / cap)
    return log_sum_exp - _at_targets(masked, targets), d_scores.astype(scores.dtype)


def _loss_sum_backward(_vocab_size, _cap, _chunk, gradients, d_total):
    """The gradients of `targets` and `weights` count as 0: both are data."""
    d_hidden, d_table = (g * d_total.astype(g.dtype) for g in gradients)
    return d_hidden, d_table, None, None


_loss_sum.defvjp(_loss_sum_forward, _loss_sum_backward)


def _log_sum_exp(scores: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    """In f32 at least."""
    return jax.nn.logsumexp(_widen(scores), axis=-1)


def _token_ids(scores: Float[Array, "*N V"]) -> Int[Array, "*N V"]:
    """The index along the last dimension of each of `scores`."""
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _at_targets(scores: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """In f32 at least."""
    # A sum of zeros and one score is exact, and XLA makes it in the pass that sums exponentials.
    is_target = _token_ids(scores) == targets[..., None]
    return _widen(jnp.where(is_target, scores, 0)).sum(-1)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _chunks(chunk: int, *arrays):
    """[B, T, ...] -> [T/chunk, B, chunk, ...]. Every device keeps its rows, as only T is cut."""
    cut = (a.reshape(a.shape[0], -1, chunk, *a.shape[2:]) for a in arrays)
    return tuple(jnp.moveaxis(a, 1, 0) for a in cut)
