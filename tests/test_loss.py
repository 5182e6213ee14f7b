"""The chunked loss must be the plain one in value and gradient, and must never hold all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.loss import cross_entropy, logits

B, T, D, V = 3, 12, 8, 128
# Fewer than V: the other rows pad the embedding.
VOCAB_SIZE = 100


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D))
    table = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, VOCAB_SIZE)
    weights = jax.random.bernoulli(keys[3], 0.6, (B, T)).astype(jnp.float32)
    return hidden, table, targets, weights


def plain_loss(hidden, table, targets, weights):
    scores = jnp.einsum("btd,vd->btv", hidden, table[:VOCAB_SIZE])
    log_probabilities = jax.nn.log_softmax(scores)
    at_targets = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    return -(at_targets * weights).sum()


def chunked_loss(hidden, table, targets, weights, chunk=4):
    return cross_entropy(hidden, table, targets, weights, vocab_size=VOCAB_SIZE, chunk=chunk)[0]


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_value_and_gradient_equal_the_plain_ones_for_any_chunk(problem, chunk):
    hidden, table, targets, weights = problem

    @jax.jit
    def both(hidden, table):
        def value_and_gradient(loss, **kwargs):
            # A factor, so that the gradient of the result is not 1.
            return jax.value_and_grad(
                lambda h, t: 3 * loss(h, t, targets, weights, **kwargs), argnums=(0, 1)
            )(hidden, table)

        return value_and_gradient(chunked_loss, chunk=chunk), value_and_gradient(plain_loss)

    found, expected = both(hidden, table)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


def test_rows_that_pad_the_embedding_change_nothing(problem):
    hidden, table, targets, weights = problem
    value_and_gradient = jax.jit(
        jax.value_and_grad(lambda t: chunked_loss(hidden, t, targets, weights))
    )
    value, _ = value_and_gradient(table)
    value_of_huge, gradient_of_huge = value_and_gradient(table.at[VOCAB_SIZE:].set(100.0))
    assert value == value_of_huge
    assert not gradient_of_huge[VOCAB_SIZE:].any()
    assert jnp.isneginf(logits(hidden, table, VOCAB_SIZE)[..., VOCAB_SIZE:]).all()


def test_a_mask_of_zeros_gives_zero_and_no_nan(problem):
    hidden, table, targets, weights = problem
    value, gradient = jax.value_and_grad(chunked_loss)(
        hidden, table, targets, jnp.zeros_like(weights)
    )
    assert value == 0
    assert not gradient.any()


def test_no_array_is_as_large_as_all_logits(problem):
    def largest_array(loss, *arguments):
        program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*arguments)
        return max(array_sizes(program.jaxpr))

    assert largest_array(lambda *a: chunked_loss(*a, chunk=2), *problem) < B * T * VOCAB_SIZE
    # The plain loss does have them, and the search finds them.
    assert largest_array(plain_loss, *problem) >= B * T * VOCAB_SIZE


def array_sizes(jaxpr):
    """The number of elements of every intermediate result, also inside of loops."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from array_sizes(inner)
