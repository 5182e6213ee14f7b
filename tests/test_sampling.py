"""The filters keep what a sort would keep, and the draws follow the probabilities that are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minigpt_jax.errors import InputError
from minigpt_jax.loss import logits
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import (
    MAX_BIASED,
    Occurrences,
    biased_and_penalized,
    filter_top_k_top_p,
    sample_logits,
    sampling_params,
    smallest_leading_set,
)

VOCAB = 384
CONFIG = GPTConfig(vocab_size=VOCAB, context=8, layers=1, heads=1, embed=8)
SCORES = jnp.asarray(np.random.default_rng(0).normal(size=(1, VOCAB)) * 3, jnp.float32)
# Rows of every call, so that one compiled program serves all tests.
ROWS = 400
NONE_RECENT = np.full((ROWS, 2), -1, np.int32)

sample = jax.jit(sample_logits)


def drawn(
    scores=SCORES, *, count: int = ROWS, occurrences=None, recent=NONE_RECENT, **sampling
) -> np.ndarray:
    """`count` tokens from `scores` [1, V], each for another position."""
    # One seed for all rows: the position alone makes the difference.
    settings = jax.tree.map(lambda a: np.repeat(a, ROWS, 0), sampling_params(1, CONFIG, **sampling))
    occurrences = occurrences or Occurrences.none(1, CONFIG)
    occurrences = Occurrences(*(np.repeat(a, ROWS, 0) for a in occurrences))
    rows = np.repeat(np.asarray(scores), ROWS, 0)
    parts = [
        sample(rows, settings, occurrences, recent, np.arange(first, first + ROWS))
        for first in range(0, count, ROWS)
    ]
    return np.concatenate(parts)


def test_each_filter_keeps_the_tokens_of_its_definition():
    ranked = np.argsort(-np.asarray(SCORES[0]))
    probabilities = np.asarray(jax.nn.softmax(SCORES[0]))[ranked]
    assert set(drawn(top_k=3)) == set(ranked[:3])
    nucleus = int((np.cumsum(probabilities) < 0.5).sum()) + 1
    assert set(drawn(top_p=0.5)) == set(ranked[:nucleus])
    assert set(drawn(min_p=0.3)) == set(ranked[probabilities >= 0.3 * probabilities[0]])


@pytest.mark.parametrize("sampling", [{"top_p": 1e-6}, {"temperature": 0.0}, {"top_k": 1}])
def test_the_narrowest_filter_leaves_the_most_likely_token(sampling):
    assert set(drawn(**sampling)) == {int(jnp.argmax(SCORES))}


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": VOCAB},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"top_k": VOCAB, "top_p": 0.999999999},
    ],
)
def test_a_filter_that_keeps_everything_changes_no_token(sampling):
    assert np.array_equal(drawn(seed=3, **sampling), drawn(seed=3))


def test_another_seed_draws_other_tokens():
    assert not np.array_equal(drawn(seed=4), drawn(seed=3))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.5, -1.0, 0.0, 0.5, 3.0]), min_size=VOCAB, max_size=VOCAB),
    st.integers(1, VOCAB),
    st.floats(0.0078125, 1.0, width=32),
    st.booleans(),
)
def test_filters_keep_what_a_stable_sort_would_keep(values, top_k, top_p, smooth):
    # Scores of five values have many ties; with a little noise there are none.
    scores = np.array(values, np.float32) + smooth * np.asarray(SCORES[0])
    order = np.argsort(-scores, kind="stable")
    top = order[:top_k]
    weights = np.exp(scores[top] - scores.max()).astype(np.float64)
    before = (np.cumsum(weights) - weights) / weights.sum()
    # Where the sum of f32 probabilities comes close to top_p, rounding decides.
    certain = set(top[before < top_p - 1e-5])
    possible = set(top[before < top_p + 1e-5]) if top_p < 1 else set(top)

    two_rows = sampling_params(2, CONFIG)._replace(
        top_k=np.array([top_k, VOCAB], np.int32), top_p=np.array([top_p, 1.0], np.float32)
    )
    filtered = np.asarray(filter_two(jnp.asarray(np.stack([scores, scores])), two_rows))
    assert certain <= set(np.flatnonzero(np.isfinite(filtered[0]))) <= possible
    # The second row keeps everything, whatever the first one asks for.
    assert np.array_equal(filtered[1], scores)


filter_two = jax.jit(filter_top_k_top_p)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_leading_set_is_the_same_however_many_bits_a_round_finds(bits):
    # Both signs, a large range, zero, and two neighbours among the floats.
    wide = SCORES[0] * 10.0 ** np.arange(-4, 4).repeat(VOCAB // 8)
    scores = np.array([*wide, 0.0, 1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    ranked = np.argsort(-scores)
    counts = np.arange(1, len(scores) + 1)
    rows = jnp.asarray(np.tile(scores, (len(counts), 1)))
    kept = smallest_leading_set(rows, jnp.ones_like(rows), jnp.asarray(counts, jnp.float32), bits)
    for count, row in zip(counts, kept, strict=True):
        assert set(np.flatnonzero(row)) == set(ranked[:count])


@pytest.mark.parametrize("vocab", [384, 300])
def test_a_top_k_of_the_whole_vocabulary_is_seen_as_no_filter(vocab):
    config = GPTConfig(vocab_size=vocab, context=8, layers=1, heads=1, embed=8)
    for sampling in ({}, {"top_k": vocab}):
        assert sampling_params(1, config, **sampling).top_k[0] == config.padded_vocab


def test_of_equal_scores_top_k_keeps_k():
    equal = np.zeros((1, VOCAB), np.float32)
    assert len(set(drawn(equal, top_k=1))) == 1
    assert len(set(drawn(equal, top_k=5))) == 5


def test_greedy_takes_the_first_of_the_highest_scores():
    # Few values: there are ties within a group of 128 tokens and between groups.
    scores = np.random.default_rng(0).integers(-3, 4, (ROWS, VOCAB)).astype(np.float32)
    scores[0] = -np.inf
    scores[1, :300] = -np.inf
    scores[2, [130, 131]] = np.inf
    greedy = sampling_params(ROWS, CONFIG, temperature=0.0)
    tokens = sample(scores, greedy, Occurrences.none(ROWS, CONFIG), NONE_RECENT, np.arange(ROWS))
    assert tokens.tolist() == scores.argmax(-1).tolist()


def test_draws_follow_the_probabilities():
    probabilities = [0.5, 0.3, 0.2]
    scores = np.log(np.array([probabilities + [1e-12] * (VOCAB - 3)], np.float32))
    count = 10 * ROWS
    shares = np.bincount(drawn(scores, count=count), minlength=3)[:3] / count
    np.testing.assert_allclose(shares, probabilities, atol=0.03)


BEST, SECOND = np.argsort(-np.asarray(SCORES[0]))[:2].tolist()


def in_text(*, prompt: bool, times_drawn: int) -> Occurrences:
    """A text with the most likely token."""
    occurrences = Occurrences.none(1, CONFIG)
    occurrences.in_prompt[0, BEST] = prompt
    occurrences.drawn[0, BEST] = times_drawn
    return occurrences


PROMPT = in_text(prompt=True, times_drawn=0)
ONCE = in_text(prompt=False, times_drawn=1)
THRICE = in_text(prompt=False, times_drawn=3)
# What the best score lacks to the second one; the others are rounded above and below it.
LEAD = float(SCORES[0, BEST] - SCORES[0, SECOND])


@pytest.mark.parametrize(
    ("occurrences", "sampling", "expected"),
    [
        (PROMPT, {}, BEST),
        (PROMPT, {"repetition_penalty": 100.0}, SECOND),
        (ONCE, {"repetition_penalty": 100.0}, SECOND),
        # Of the tokens that were drawn only.
        (PROMPT, {"presence_penalty": 2.0, "frequency_penalty": 2.0}, BEST),
        (ONCE, {"presence_penalty": LEAD * 0.9}, BEST),
        (ONCE, {"presence_penalty": LEAD * 1.1}, SECOND),
        (THRICE, {"presence_penalty": LEAD * 0.9}, BEST),
        # The frequency penalty counts.
        (ONCE, {"frequency_penalty": LEAD * 0.9}, BEST),
        (THRICE, {"frequency_penalty": LEAD * 0.3}, BEST),
        (THRICE, {"frequency_penalty": LEAD * 0.4}, SECOND),
    ],
)
def test_penalties_make_tokens_of_the_text_less_likely(occurrences, sampling, expected):
    assert LEAD < 2
    assert set(drawn(temperature=0.0, occurrences=occurrences, **sampling)) == {expected}


@pytest.mark.parametrize(("scale", "expected"), [(0.4, BEST), (0.6, SECOND)])
def test_recent_tokens_count_too(scale, expected):
    """Each as often as it was drawn, beside those that are counted already."""
    recent = np.array([[BEST, -1]] * ROWS, np.int32)
    penalty = {"temperature": 0.0, "frequency_penalty": LEAD * scale}
    assert set(drawn(occurrences=ONCE, recent=recent, **penalty)) == {expected}
    assert set(drawn(recent=np.repeat(recent[:, :1], 2, 1), **penalty)) == {expected}


def test_a_bias_is_added_to_the_scores_of_its_tokens():
    last = VOCAB - 1
    assert set(drawn(temperature=0.0, logit_bias={BEST: -100})) == {SECOND}
    assert set(drawn(logit_bias={7: 100})) == {7}
    assert set(drawn(temperature=0.0, logit_bias={last: 100, 0: 99.5})) == {last}
    most = dict.fromkeys(range(MAX_BIASED), 100)
    assert max(drawn(logit_bias=most)) < MAX_BIASED
    # A bias of zero, or the same for all, changes nothing.
    assert np.array_equal(drawn(seed=3, logit_bias={BEST: 0}), drawn(seed=3))


def test_the_settings_of_one_row_do_not_change_another():
    both = sampling_params(2, CONFIG, temperature=0.0)
    one = sampling_params(
        1, CONFIG, temperature=0.0, repetition_penalty=5.0, frequency_penalty=2, logit_bias={3: 9}
    )
    both = type(both)(*(np.concatenate([a, b[:1]]) for a, b in zip(one, both, strict=True)))
    occurrences = Occurrences(*(np.repeat(a, 2, 0) for a in THRICE))
    changed = jax.jit(biased_and_penalized)(jnp.repeat(SCORES, 2, 0), both, occurrences)
    assert np.array_equal(changed[1], SCORES[0]) and not np.array_equal(changed[0], SCORES[0])


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({VOCAB: 1}, f"token {VOCAB}: expected an id from 0 to {VOCAB - 1}"),
        ({-1: 1}, "token -1"),
        ({3: 101}, "expected -100 to 100"),
        ({3: float("nan")}, "expected -100 to 100"),
        (dict.fromkeys(range(MAX_BIASED + 1), 1), f"at most {MAX_BIASED}"),
    ],
)
def test_a_bias_out_of_range_is_refused(bias, message):
    with pytest.raises(InputError, match=message):
        sampling_params(1, CONFIG, logit_bias=bias)


@pytest.mark.parametrize("content", [0.0, 1e30, np.inf, np.nan])
def test_padded_rows_of_the_vocabulary_are_never_drawn(content):
    """Whatever they hold."""
    table = jnp.zeros((VOCAB, 8)).at[300:].set(content)
    scores = logits(jnp.ones((1, 1, 8)), table, 300)[:, 0]
    assert drawn(scores, count=8 * ROWS, temperature=50.0).max() < 300
    assert drawn(scores, temperature=0.0).max() < 300
    assert drawn(scores, top_p=0.999, top_k=299, min_p=0.001).max() < 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_k", 385),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name.replace('_', '.')} {value}"):
        sampling_params(1, CONFIG, **{name: value})
