"""The kernels for NVIDIA GPUs compute what plain JAX does; here a CPU interprets them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import triton_kernels
from minigpt_jax.functional import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    layer_norm,
    queries_keys_values,
    rms_norm,
)
from minigpt_jax.loss import cap_logits

VOCAB = 5000
PADDED_VOCAB = 5120


@pytest.fixture(scope="module")
def draw():
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.array(generator.normal(size=shape), jnp.float32)


def test_layer_norm_backward(draw):
    # More rows than programs, some of which have one more; a width that is no power of 2.
    x, d_y, d_x = draw(3, 1, 20, 96)
    scale, bias = draw(2, 96)
    normalise = partial(layer_norm, dtype=jnp.float32)
    _, pullback = jax.vjp(normalise, x, scale, bias)
    expected = pullback((d_x, d_y))
    found = triton_kernels.layer_norm_backward(
        x[0], d_y[0], d_x[0], scale, LAYER_NORM_EPS, programs=8, interpret=True
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(jnp.squeeze(a), b, atol=1e-5)


def test_rms_norm_backward(draw):
    x, d_y, d_x = draw(3, 1, 20, 96)
    # A row of zeros, and large values.
    x = x.at[0, 3].set(0).at[0, 4].multiply(1e4)
    _, pullback = jax.vjp(rms_norm, x)
    (expected,) = pullback((d_x, d_y))
    found = triton_kernels.rms_norm_backward(x[0], d_y[0], d_x[0], RMS_NORM_EPS, interpret=True)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotated_heads_and_their_gradient(draw, dtype):
    # One row more than a program has, and heads that are no power of 2.
    rows = triton_kernels.HEAD_ROWS + 1
    qkv = draw(1, rows, 3, 3, 8).astype(dtype)
    angles = draw(1, rows, 1, 4)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    gradients = tuple(draw(3, 1, rows, 3, 8).astype(dtype))
    expected, pullback = jax.vjp(lambda qkv: queries_keys_values(qkv, cos, sin), qkv)
    flat_cos, flat_sin = cos[0, :, 0], sin[0, :, 0]
    q, k, v, inverse = triton_kernels.rotate_heads(
        qkv[0], flat_cos, flat_sin, RMS_NORM_EPS, interpret=True
    )
    d_qkv = triton_kernels.rotate_heads_backward(
        q, k, inverse, flat_cos, flat_sin, tuple(g[0] for g in gradients), interpret=True
    )
    atol = 1e-5 if dtype == jnp.float32 else 0.05
    for a, b in zip((q, k, v, d_qkv), (*expected, *pullback(gradients)), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b[0].astype(jnp.float32), atol=atol)


@pytest.mark.parametrize("cap", [None, 15.0])
def test_cross_entropy_and_gradient(draw, cap):
    scores = 3 * draw(4, PADDED_VOCAB)
    # The largest score is in the last block; all are far below 0; one row has no weight.
    scores = scores.at[1, VOCAB - 1].set(60).at[2].add(-500)
    targets = jnp.array([0, 3, VOCAB - 1, 17])
    weights = jnp.array([1.0, 0.5, 2.0, 0.0])
    check_cross_entropy(scores, targets, weights, VOCAB, cap, atol=2e-4)


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("vocab_size", [100, triton_kernels.LOSS_COLUMNS])
def test_cross_entropy_of_a_vocabulary_without_a_whole_block_or_without_padding(
    draw, vocab_size, cap
):
    scores = 9 * draw(2, -(-vocab_size // 128) * 128).astype(jnp.bfloat16)
    targets = jnp.array([1, vocab_size - 1])
    check_cross_entropy(scores, targets, jnp.ones(2), vocab_size, cap, atol=4e-3)


def check_cross_entropy(scores, targets, weights, vocab_size: int, cap, atol: float) -> None:
    wide = scores.astype(jnp.float32)

    def loss_sum(scores):
        scores = cap_logits(scores, cap)
        masked = jnp.where(jnp.arange(scores.shape[1])[None] < vocab_size, scores, -jnp.inf)
        chosen = jnp.take_along_axis(masked, targets[:, None], 1)[:, 0]
        losses = jax.nn.logsumexp(masked, axis=1) - chosen
        return (weights * losses).sum(), losses

    (_, losses), gradient = jax.value_and_grad(loss_sum, has_aux=True)(wide)
    found = triton_kernels.cross_entropy_and_gradient(
        scores, targets, weights, vocab_size, cap, interpret=True
    )
    assert found[1].dtype == scores.dtype
    np.testing.assert_allclose(losses, found[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient, found[1].astype(jnp.float32), atol=atol)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_score_that_is_not_finite_makes_a_loss_that_is_not_finite(draw, bad):
    scores = draw(2, 128).at[1, 5].set(bad)
    losses, _ = triton_kernels.cross_entropy_and_gradient(
        scores, jnp.array([3, 4]), jnp.ones(2), 100, interpret=True
    )
    assert list(np.isfinite(losses)) == [True, False]
