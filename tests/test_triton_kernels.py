"""The kernels for NVIDIA GPUs compute what plain JAX does; here a CPU interprets them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import triton_kernels
from minigpt_jax.functional import LAYER_NORM_EPS, layer_norm

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


def test_cross_entropy_and_gradient(draw):
    scores = 3 * draw(4, PADDED_VOCAB)
    # The largest score is in the last block; all are far below 0; one row has no weight.
    scores = scores.at[1, VOCAB - 1].set(60).at[2].add(-500)
    targets = jnp.array([0, 3, VOCAB - 1, 17])
    weights = jnp.array([1.0, 0.5, 2.0, 0.0])
    check_cross_entropy(scores, targets, weights, VOCAB, atol=2e-4)


@pytest.mark.parametrize("vocab_size", [100, triton_kernels.LOSS_COLUMNS])
def test_cross_entropy_of_a_vocabulary_without_a_whole_block_or_without_padding(draw, vocab_size):
    scores = draw(2, -(-vocab_size // 128) * 128).astype(jnp.bfloat16)
    targets = jnp.array([1, vocab_size - 1])
    check_cross_entropy(scores, targets, jnp.ones(2), vocab_size, atol=4e-3)


def check_cross_entropy(scores, targets, weights, vocab_size: int, atol: float) -> None:
    wide = scores.astype(jnp.float32)

    def loss_sum(scores):
        masked = jnp.where(jnp.arange(scores.shape[1])[None] < vocab_size, scores, -jnp.inf)
        chosen = jnp.take_along_axis(masked, targets[:, None], 1)[:, 0]
        losses = jax.nn.logsumexp(masked, axis=1) - chosen
        return (weights * losses).sum(), losses

    (_, losses), gradient = jax.value_and_grad(loss_sum, has_aux=True)(wide)
    found = triton_kernels.cross_entropy_and_gradient(
        scores, targets, weights, vocab_size, interpret=True
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
