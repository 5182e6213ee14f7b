"""The chunked loss must be the plain one in value and gradient, and must never hold all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.loss import cross_entropy, logits

B, T, D, V, LIVE = 3, 12, 8, 128, 100


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, table = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, LIVE)
    weights = jax.random.bernoulli(keys[3], 0.6, (B, T)).astype(jnp.float32)
    return hidden, table, targets, weights


def plain(hidden, table, targets, weights):
    scores = jnp.einsum("btd,vd->btv", hidden, table[:LIVE])
    chosen = jax.nn.log_softmax(scores)[jnp.arange(B)[:, None], jnp.arange(T)[None], targets]
    return -(chosen * weights).sum()


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_value_and_gradient_equal_the_plain_ones_for_any_chunk(problem, chunk):
    hidden, table, targets, weights = problem

    def ours(hidden, table):
        return 3 * cross_entropy(hidden, table, targets, weights, vocab_size=LIVE, chunk=chunk)[0]

    expected = jax.jit(
        jax.value_and_grad(lambda h, t: 3 * plain(h, t, targets, weights), argnums=(0, 1))
    )(hidden, table)
    found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(hidden, table)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


def test_rows_beyond_the_vocabulary_take_no_part(problem):
    hidden, table, targets, weights = problem
    huge = table.at[LIVE:].set(100.0)
    value = [
        cross_entropy(hidden, t, targets, weights, vocab_size=LIVE, chunk=4)[0]
        for t in (table, huge)
    ]
    assert value[0] == value[1]
    gradient = jax.grad(
        lambda t: cross_entropy(hidden, t, targets, weights, vocab_size=LIVE, chunk=4)[0]
    )(huge)
    assert not gradient[LIVE:].any()
    assert jnp.isneginf(logits(hidden, table, LIVE)[..., LIVE:]).all()


def test_a_mask_of_zeros_gives_zero_and_no_nan(problem):
    hidden, table, targets, _ = problem

    def loss(hidden):
        return cross_entropy(hidden, table, targets, jnp.zeros((B, T)), vocab_size=LIVE, chunk=4)[0]

    value, gradient = jax.value_and_grad(loss)(hidden)
    assert value == 0 and not gradient.any()


def test_no_array_as_large_as_all_logits_exists(problem):
    hidden, table, targets, weights = problem

    def loss(hidden, table):
        return cross_entropy(hidden, table, targets, weights, vocab_size=LIVE, chunk=2)[0]

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, table)
    assert max(_sizes(program.jaxpr)) < B * T * V
    assert (
        max(
            _sizes(
                jax.make_jaxpr(jax.grad(lambda h: plain(h, table, targets, weights)))(hidden).jaxpr
            )
        )
        >= B * T * LIVE
    )  # the check sees it


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _sizes(inner)
