"""Kernels for NVIDIA GPUs that read each array once, where XLA reads it two or three times.

Written in Pallas, which compiles them with Triton. functional.py and loss.py have the same
functions in plain JAX, which other devices run; kernel_choice.py says which of the two runs, and
imports this file only where it does.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas.triton import CompilerParams, load, store
from jaxtyping import Float, Int

# Programs of the LayerNorm kernel: 12 for each of an H100's 132 processors run at the same time.
# Each writes sums for the gradients of scale and bias, so more would write more.
NORM_PROGRAMS = 1584
# Values of a row that one warp of a normalisation holds, 32 in each of its threads.
NORM_VALUES = 1024
# Tokens whose vectors of one head are the work of a program of the rotary kernels.
HEAD_ROWS = 32
# Columns that a program of the loss kernel takes at a time.
LOSS_COLUMNS = 4096
LOG2_E = 1.4426950408889634
# In place of minus infinity, whose differences are not numbers.
LOWEST = -1e30


def layer_norm_backward(
    x: Float[Array, "N D"],
    d_y: Float[Array, "N D"],
    d_x: Float[Array, "N D"],
    scale: Float[Array, " D"],
    eps: float,
    programs: int = NORM_PROGRAMS,
    interpret: bool = False,
) -> tuple[Float[Array, "N D"], Float[Array, " D"], Float[Array, " D"]]:
    """`d_x` plus the gradient of LayerNorm with respect to its input, and those of its weights."""
    rows, width = x.shape
    programs = min(rows, programs)
    partial_sums = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    d_x, d_scale, d_bias = pl.pallas_call(
        partial(_layer_norm_kernel, eps=eps),
        grid=(programs,),
        out_shape=(jax.ShapeDtypeStruct(x.shape, x.dtype), partial_sums, partial_sums),
        compiler_params=_norm_params(width),
        interpret=interpret,
        name="layer_norm_backward",
    )(x, d_y, d_x, scale)
    return d_x, d_scale.sum(0), d_bias.sum(0)


def _layer_norm_kernel(
    x_ref, d_y_ref, add_ref, scale_ref, d_x_ref, d_scale_ref, d_bias_ref, *, eps
):
    rows, width = d_x_ref.shape
    programs, _ = d_scale_ref.shape
    block = pl.next_power_of_2(width)
    program = pl.program_id(0)
    # A start that is only known when the kernel runs: a block may be wider than the array.
    columns = pl.ds(program * 0, block)
    mask = jnp.arange(block) < width

    def load_row(ref, *row):
        return load(ref.at[*row, columns], mask=mask, other=0.0).astype(jnp.float32)

    scale = load_row(scale_ref)

    def add_row(i, sums):
        d_scale, d_bias = sums
        row = program + i * programs
        x = load_row(x_ref, row)
        d_y = load_row(d_y_ref, row)
        d_x = load_row(add_ref, row)
        centred = jnp.where(mask, x - x.sum() / width, 0.0)
        inverse_std = jax.lax.rsqrt((centred * centred).sum() / width + eps)
        normal = centred * inverse_std
        d_normal = d_y * scale
        along_mean = d_normal.sum() / width
        along_normal = (d_normal * normal).sum() / width
        d_x += inverse_std * (d_normal - along_mean - normal * along_normal)
        store(d_x_ref.at[row, columns], d_x.astype(d_x_ref.dtype), mask=mask)
        return d_scale + d_y * normal, d_bias + d_y

    zeros = jnp.zeros(block, jnp.float32)
    own_rows = pl.cdiv(rows - program, programs)
    d_scale, d_bias = jax.lax.fori_loop(0, own_rows, add_row, (zeros, zeros))
    store(d_scale_ref.at[program, columns], d_scale, mask=mask)
    store(d_bias_ref.at[program, columns], d_bias, mask=mask)


def rms_norm_backward(
    x: Float[Array, "N D"],
    d_y: Float[Array, "N D"],
    d_x: Float[Array, "N D"],
    eps: float,
    interpret: bool = False,
) -> Float[Array, "N D"]:
    """`d_x` plus the gradient of RMSNorm with respect to its input."""
    rows, width = x.shape
    return pl.pallas_call(
        partial(_rms_norm_kernel, eps=eps),
        grid=(rows,),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=_norm_params(width),
        interpret=interpret,
        name="rms_norm_backward",
    )(x, d_y, d_x)


def _rms_norm_kernel(x_ref, d_y_ref, add_ref, d_x_ref, *, eps):
    _, width = d_x_ref.shape
    row = pl.program_id(0)
    block = pl.next_power_of_2(width)
    columns = pl.ds(row * 0, block)
    mask = jnp.arange(block) < width
    x, d_y, d_x = (
        load(ref.at[row, columns], mask=mask, other=0.0).astype(jnp.float32)
        for ref in (x_ref, d_y_ref, add_ref)
    )
    inverse_rms = jax.lax.rsqrt((x * x).sum() / width + eps)
    normal = x * inverse_rms
    d_x += inverse_rms * (d_y - normal * ((d_y * normal).sum() / width))
    store(d_x_ref.at[row, columns], d_x.astype(d_x_ref.dtype), mask=mask)


def _norm_params(width: int) -> CompilerParams:
    warps = max(1, pl.next_power_of_2(width) // NORM_VALUES)
    return CompilerParams(num_warps=warps, num_stages=2)


def rotate_heads(
    qkv: Float[Array, "N 3 H K"],
    cos: Float[Array, "N J"],
    sin: Float[Array, "N J"],
    eps: float,
    interpret: bool = False,
) -> tuple[
    Float[Array, "N H K"], Float[Array, "N H K"], Float[Array, "N H K"], Float[Array, "2 H N"]
]:
    """q, k and v, of which `functional.rotate_and_normalise` changed q and k, and what they were
    multiplied by. K = 2 J is a power of 2.
    """
    rows, _, heads, width = qkv.shape
    part = jax.ShapeDtypeStruct((rows, heads, width), qkv.dtype)
    return pl.pallas_call(
        partial(_rotate_kernel, eps=eps),
        grid=(pl.cdiv(rows, HEAD_ROWS), heads),
        out_shape=(part, part, part, jax.ShapeDtypeStruct((2, heads, rows), jnp.float32)),
        interpret=interpret,
        name="rotate_heads",
    )(qkv, cos, sin)


def _rotate_kernel(qkv_ref, cos_ref, sin_ref, q_ref, k_ref, v_ref, inverse_ref, *, eps):
    rows, head, parts, mask, halves = _head_block(qkv_ref)
    cos, sin = (load(ref.at[rows, halves[0]], mask=mask, other=0.0) for ref in (cos_ref, sin_ref))
    for part, ref in zip(parts[:2], (q_ref, k_ref), strict=True):
        a, b = (_load_wide(qkv_ref.at[rows, part, head, half], mask) for half in halves)
        inverse = jax.lax.rsqrt((a * a + b * b).sum(1) / qkv_ref.shape[3] + eps)
        store(inverse_ref.at[part, head, rows], inverse, mask=mask[:, 0])
        rotated = (a * cos + b * sin, b * cos - a * sin)
        for half, values in zip(halves, rotated, strict=True):
            values = (values * inverse[:, None]).astype(ref.dtype)
            store(ref.at[rows, head, half], values, mask=mask)
    for half in halves:
        v = load(qkv_ref.at[rows, parts[2], head, half], mask=mask)
        store(v_ref.at[rows, head, half], v, mask=mask)


def rotate_heads_backward(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    inverse: Float[Array, "2 H N"],
    cos: Float[Array, "N J"],
    sin: Float[Array, "N J"],
    gradients: tuple[Float[Array, "N H K"], Float[Array, "N H K"], Float[Array, "N H K"]],
    interpret: bool = False,
) -> Float[Array, "N 3 H K"]:
    """The gradient of `qkv`, from results of `rotate_heads` and the gradients of q, k and v."""
    rows, heads, width = q.shape
    return pl.pallas_call(
        _rotate_backward_kernel,
        grid=(pl.cdiv(rows, HEAD_ROWS), heads),
        out_shape=jax.ShapeDtypeStruct((rows, 3, heads, width), q.dtype),
        interpret=interpret,
        name="rotate_heads_backward",
    )(q, k, inverse, cos, sin, *gradients)


def _rotate_backward_kernel(
    q_ref, k_ref, inverse_ref, cos_ref, sin_ref, d_q_ref, d_k_ref, d_v_ref, d_qkv_ref
):
    rows, head, parts, mask, halves = _head_block(d_qkv_ref)
    cos, sin = (load(ref.at[rows, halves[0]], mask=mask, other=0.0) for ref in (cos_ref, sin_ref))
    for part, y_ref, d_ref in zip(parts[:2], (q_ref, k_ref), (d_q_ref, d_k_ref), strict=True):
        y = [_load_wide(y_ref.at[rows, head, half], mask) for half in halves]
        d_y = [_load_wide(d_ref.at[rows, head, half], mask) for half in halves]
        inverse = load(inverse_ref.at[part, head, rows], mask=mask[:, 0], other=0.0)[:, None]
        along = ((y[0] * d_y[0] + y[1] * d_y[1]).sum(1) / q_ref.shape[2])[:, None]
        a, b = (inverse * (d_y[i] - y[i] * along) for i in range(2))
        for half, values in zip(halves, (a * cos - b * sin, b * cos + a * sin), strict=True):
            values = values.astype(d_qkv_ref.dtype)
            store(d_qkv_ref.at[rows, part, head, half], values, mask=mask)
    for half in halves:
        d_v = load(d_v_ref.at[rows, head, half], mask=mask)
        store(d_qkv_ref.at[rows, parts[2], head, half], d_v, mask=mask)


def _head_block(qkv_ref):
    """Indices of `qkv` for this program: rows, head, parts, a mask, and the halves of a head."""
    length, _, _, width = qkv_ref.shape
    start = pl.program_id(0) * HEAD_ROWS
    mask = (start + jnp.arange(HEAD_ROWS) < length)[:, None]
    half = width // 2
    halves = (pl.ds(0, half), pl.ds(half, half))
    # The interpreter of kernels takes no Python integers.
    parts = [jnp.int32(part) for part in range(3)]
    return pl.ds(start, HEAD_ROWS), pl.program_id(1), parts, mask, halves


def _load_wide(ref, mask):
    return load(ref, mask=mask, other=0.0).astype(jnp.float32)


def cross_entropy_and_gradient(
    scores: Float[Array, "N V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    vocab_size: int,
    cap: float | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, " N"], Float[Array, "N V"]]:
    """The loss of each row (without its weight), and the gradient of the weighted sum of losses.

    `cap`: see `loss.cap_logits`. The gradient overwrites `scores`.
    """
    rows, _ = scores.shape
    losses, d_scores = pl.pallas_call(
        partial(_loss_kernel, vocab_size=vocab_size, cap=cap),
        grid=(rows,),
        out_shape=(
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct(scores.shape, scores.dtype),
        ),
        input_output_aliases={0: 1},
        compiler_params=CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="cross_entropy",
    )(scores, targets, weights)
    return losses, d_scores


def _loss_kernel(
    scores_ref, targets_ref, weights_ref, losses_ref, d_scores_ref, *, vocab_size, cap
):
    # Arithmetic binds this kernel, not memory: exponentials of base 2 are one instruction, and only
    # the last block has a mask.
    row = pl.program_id(0)
    width = d_scores_ref.shape[1]
    target = targets_ref[row]
    weight = weights_ref[row]
    # Before the gradient overwrites it.
    chosen = _cap(scores_ref[row, target].astype(jnp.float32), cap)
    lanes = jax.lax.iota(jnp.int32, LOSS_COLUMNS)

    def load_block(start, mask=None):
        at = (row, pl.ds(start, LOSS_COLUMNS))
        other = None if mask is None else LOWEST
        scores = _cap(load(scores_ref.at[at], mask=mask, other=other).astype(jnp.float32), cap)
        return at, scores if mask is None else jnp.where(mask, scores, LOWEST)

    def add(start, sums, mask=None):
        largest, total = sums
        _, scores = load_block(start, mask)
        if cap is None:
            new_largest = jnp.maximum(largest, scores.max())
            total *= jnp.exp2(LOG2_E * (largest - new_largest))
            largest = new_largest
        return largest, total + jnp.exp2(LOG2_E * scores - LOG2_E * largest)

    def store_gradient(start, log_sum_exp, mask=None):
        at, scores = load_block(start, mask)
        probabilities = jnp.exp2(LOG2_E * scores - LOG2_E * log_sum_exp)
        if mask is not None:
            probabilities = jnp.where(start + lanes < vocab_size, probabilities, 0.0)
        d_scores = jnp.where(lanes == target - start, probabilities - 1.0, probabilities) * weight
        if cap is not None:
            tanh = scores * (1.0 / cap)
            d_scores *= 1.0 - tanh * tanh
        store(d_scores_ref.at[at], d_scores.astype(d_scores_ref.dtype), mask=mask)

    # Blocks without padded rows of the vocabulary, and the start of the one that has some.
    full = vocab_size // LOSS_COLUMNS
    last = row * 0 + full * LOSS_COLUMNS
    zeros = jnp.zeros(LOSS_COLUMNS, jnp.float32)
    # Capped scores need no search for the largest: no exponential of them overflows.
    sums = (LOWEST if cap is None else cap, zeros)
    sums = jax.lax.fori_loop(0, full, lambda i, sums: add(i * LOSS_COLUMNS, sums), sums)
    largest, total = add(last, sums, last + lanes < vocab_size)
    log_sum_exp = largest + jnp.log(total.sum())
    losses_ref[row] = log_sum_exp - chosen
    jax.lax.fori_loop(0, full, lambda i, _: store_gradient(i * LOSS_COLUMNS, log_sum_exp), None)
    store_gradient(last, log_sum_exp, last + lanes < width)


def _cap(scores, cap):
    """`cap` tanh(scores / cap) in six instructions: the library's tanh takes many more.

    tanh(x) is 1 - 2 / (exp(2 x) + 1); a division would take more than the square of a root.
    """
    if cap is None:
        return scores
    root = jax.lax.rsqrt(jnp.exp2(2.0 * LOG2_E / cap * scores) + 1.0)
    return cap - 2.0 * cap * (root * root)
