"""Two kernels for NVIDIA GPUs that read each array once, where XLA reads it two or three times.

Written in Pallas, which compiles them with Triton. functional.py and loss.py have the same
functions in plain JAX, which other devices run; kernel_choice.py says which of the two runs, and
imports this file only where it does.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Float, Int

# Rows of a program of the LayerNorm kernel. Every program writes sums for the weights' gradients.
NORM_ROWS = 64
# Values of each array that a program of the LayerNorm kernel holds: 32 in each of 128 threads.
NORM_VALUES = 4096
# Columns that a program of the loss kernel takes at a time.
LOSS_COLUMNS = 4096
# In place of minus infinity, whose differences are not numbers.
LOWEST = -1e30


def layer_norm_backward(
    x: Float[Array, "N D"],
    d_y: Float[Array, "N D"],
    d_x: Float[Array, "N D"],
    scale: Float[Array, " D"],
    eps: float,
    interpret: bool = False,
) -> tuple[Float[Array, "N D"], Float[Array, " D"], Float[Array, " D"]]:
    """`d_x` plus the gradient of LayerNorm with respect to its input, and those of its weights.

    NORM_ROWS must divide N.
    """
    rows, width = x.shape
    programs = rows // NORM_ROWS
    block = pl.next_power_of_2(width)
    partial_sums = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    d_x, d_scale, d_bias = pl.pallas_call(
        partial(_layer_norm_kernel, width=width, eps=eps),
        grid=(programs,),
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), partial_sums, partial_sums),
        compiler_params=pltriton.CompilerParams(
            num_warps=min(16, max(4, block * 4 // NORM_VALUES)), num_stages=2
        ),
        interpret=interpret,
        name="layer_norm_backward",
    )(x, d_y, d_x, scale)
    return d_x, d_scale.sum(0), d_bias.sum(0)


def _layer_norm_kernel(
    x_ref, d_y_ref, add_ref, scale_ref, d_x_ref, d_scale_ref, d_bias_ref, *, width, eps
):
    block = pl.next_power_of_2(width)
    # So many rows at a time that a wide model does not need more registers than there are.
    together = max(1, NORM_VALUES // block)
    first = pl.program_id(0) * NORM_ROWS
    # A start that is only known when the kernel runs: a block may be wider than the array.
    columns = pl.ds(pl.program_id(0) * 0, block)
    mask = jnp.arange(block) < width
    masks = jnp.broadcast_to(mask[None], (together, block))
    scale = pltriton.load(scale_ref.at[columns], mask=mask, other=0.0).astype(jnp.float32)

    def of_rows(i, sums):
        d_scale, d_bias = sums
        at = (pl.ds(first + i * together, together), columns)
        x = pltriton.load(x_ref.at[at], mask=masks, other=0.0).astype(jnp.float32)
        d_y = pltriton.load(d_y_ref.at[at], mask=masks, other=0.0).astype(jnp.float32)
        d_x = pltriton.load(add_ref.at[at], mask=masks, other=0.0).astype(jnp.float32)
        centred = jnp.where(masks, x - x.sum(1, keepdims=True) / width, 0.0)
        variance = (centred * centred).sum(1, keepdims=True) / width
        inverse_std = jax.lax.rsqrt(variance + eps)
        normal = centred * inverse_std
        d_normal = d_y * scale[None]
        along_mean = d_normal.sum(1, keepdims=True) / width
        along_normal = (d_normal * normal).sum(1, keepdims=True) / width
        d_x += inverse_std * (d_normal - along_mean - normal * along_normal)
        pltriton.store(d_x_ref.at[at], d_x.astype(d_x_ref.dtype), mask=masks)
        return d_scale + (d_y * normal).sum(0), d_bias + d_y.sum(0)

    zeros = jnp.zeros(block, jnp.float32)
    d_scale, d_bias = jax.lax.fori_loop(0, NORM_ROWS // together, of_rows, (zeros, zeros))
    row = pl.program_id(0)
    pltriton.store(d_scale_ref.at[row, columns], d_scale, mask=mask)
    pltriton.store(d_bias_ref.at[row, columns], d_bias, mask=mask)


def cross_entropy_and_gradient(
    scores: Float[Array, "N V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    vocab_size: int,
    interpret: bool = False,
) -> tuple[Float[Array, " N"], Float[Array, "N V"]]:
    """The loss of each row (without its weight), and the gradient of the weighted sum of losses.

    The gradient overwrites `scores`.
    """
    rows, _ = scores.shape
    losses, d_scores = pl.pallas_call(
        partial(_loss_kernel, vocab_size=vocab_size),
        grid=(rows,),
        out_shape=(
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct(scores.shape, scores.dtype),
        ),
        input_output_aliases={0: 1},
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="cross_entropy",
    )(scores, targets, weights)
    return losses, d_scores


def _loss_kernel(scores_ref, targets_ref, weights_ref, losses_ref, d_scores_ref, *, vocab_size):
    row = pl.program_id(0)
    width = d_scores_ref.shape[1]
    target = targets_ref[row]
    weight = weights_ref[row]
    lanes = jnp.arange(LOSS_COLUMNS)

    def block(i, limit):
        columns = i * LOSS_COLUMNS + lanes
        return columns, (row, pl.ds(i * LOSS_COLUMNS, LOSS_COLUMNS)), columns < limit

    def add(i, sums):
        largest, total, chosen = sums
        columns, at, mask = block(i, vocab_size)
        scores = pltriton.load(scores_ref.at[at], mask=mask, other=LOWEST).astype(jnp.float32)
        new_largest = jnp.maximum(largest, scores.max())
        total = total * jnp.exp(largest - new_largest) + jnp.exp(scores - new_largest)
        chosen += jnp.where(columns == target, scores, 0.0)
        return new_largest, total, chosen

    zeros = jnp.zeros(LOSS_COLUMNS, jnp.float32)
    blocks = pl.cdiv(vocab_size, LOSS_COLUMNS)
    largest, total, chosen = jax.lax.fori_loop(0, blocks, add, (LOWEST, zeros, zeros))
    log_sum_exp = largest + jnp.log(total.sum())
    losses_ref[row] = log_sum_exp - chosen.sum()

    def gradient(i, _):
        columns, at, mask = block(i, width)
        scores = pltriton.load(scores_ref.at[at], mask=mask, other=LOWEST).astype(jnp.float32)
        probabilities = jnp.where(columns < vocab_size, jnp.exp(scores - log_sum_exp), 0.0)
        d_scores = (probabilities - jnp.where(columns == target, 1.0, 0.0)) * weight
        pltriton.store(d_scores_ref.at[at], d_scores.astype(d_scores_ref.dtype), mask=mask)

    jax.lax.fori_loop(0, pl.cdiv(width, LOSS_COLUMNS), gradient, None)
