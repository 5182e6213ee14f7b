"""What the decode loop writes must be what the model without a cache would write, for any prompt, batch and seed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minigpt_jax import generate, sampling
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator, TextStream
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.sampling import SamplingParams, sample_logits, sampling_params
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer
from tests.models import weights

CONFIG = GPTConfig(vocab_size=TEXT_VOCAB, context=48, layers=1, heads=2, embed=16)
TOKENIZER = load_tokenizer()
PROMPT = [END_OF_TEXT, *TOKENIZER.encode("The river reads the stone.")]


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(CONFIG)


@pytest.fixture(scope="module")
def make(params):
    return partial(Generator, params, CONFIG, TOKENIZER)


def write(writer: Generator, prompts, draw: SamplingParams, count: int = 20, stop=()):
    pieces = list(writer.stream(prompts, draw, max_new_tokens=count, stop=stop))
    for row, answer in enumerate(writer.completions):
        assert "".join(piece for r, piece in pieces if r == row) == answer.text
    return writer.completions


@pytest.fixture(scope="module")
def uncached(params):
    """The greedy or seeded continuation from full forward passes over a padded row: no cache, no loop."""
    forward = jax.jit(
        lambda ids, n: logits(
            GPT(CONFIG).apply({"params": params}, ids)[0][0, n - 1][None], params["wte"], TEXT_VOCAB
        )
    )
    choose = jax.jit(
        lambda scores, draw, position: sample_logits(
            scores, draw, jnp.zeros(scores.shape, bool), position
        )
    )

    def run(prompt, draw, count):
        ids = list(prompt)
        while len(ids) < min(len(prompt) + count, CONFIG.context):
            padded = np.zeros((1, CONFIG.context), np.int32)
            padded[0, : len(ids)] = ids
            token = int(choose(forward(padded, len(ids)), draw, np.array([len(ids)]))[0])
            if token == END_OF_TEXT:
                break
            ids.append(token)
        return ids[len(prompt) :]

    return run


@pytest.mark.parametrize("prompt", [PROMPT, [END_OF_TEXT]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_writes_what_the_model_without_a_cache_writes(make, uncached, temperature, prompt):
    draw = sampling_params(1, CONFIG, temperature=temperature, seed=5)
    answer = write(make(), [prompt], draw, 30)[0]
    assert answer.tokens == uncached(prompt, draw, 30) and len(answer.tokens) > 20


def test_a_text_goes_on_where_the_cache_had_to_grow(make, uncached, monkeypatch):
    monkeypatch.setattr(generate, "MIN_CACHE", 16)  # fewer than the context has
    writer, draw = make(), sampling_params(1, CONFIG, temperature=0.0)
    first = write(writer, [PROMPT], draw, 4)[0].tokens
    slots = writer._cache[0].k.shape[2]
    longer = [*PROMPT, *first, *TOKENIZER.encode(" A small dog sees")]
    assert write(writer, [longer], draw, 25)[0].tokens == uncached(longer, draw, 25)
    assert slots < writer._cache[0].k.shape[2] <= CONFIG.context


def test_a_row_is_the_same_alone_and_in_a_batch_of_other_prompts(make):
    alone = write(make(), [PROMPT], sampling_params(1, CONFIG, seed=8))[0]
    others = [[END_OF_TEXT], PROMPT, [END_OF_TEXT, *TOKENIZER.encode("A light token")]]
    batch = write(make(rows=3), others, sampling_params(3, CONFIG, seed=7))  # seeds 7, 8, 9
    assert batch[1] == alone and batch[0].tokens != alone.tokens


def test_the_cache_of_the_last_turn_changes_no_text(make):
    writer = make()
    first = write(writer, [PROMPT], sampling_params(1, CONFIG))[0]
    longer = [*PROMPT, *first.tokens[:7], *TOKENIZER.encode(" and the dog")]
    assert write(writer, [longer], sampling_params(1, CONFIG)) == write(
        make(), [longer], sampling_params(1, CONFIG)
    )
    assert (
        write(writer, [PROMPT], sampling_params(1, CONFIG))[0] == first
    )  # and back to the shorter one


def test_it_ends_at_the_context_and_refuses_what_is_longer(make, uncached):
    filling = [END_OF_TEXT, *TOKENIZER.encode(" river" * 60)]
    greedy = sampling_params(1, CONFIG, temperature=0.0)
    for length in (47, 48):
        answer = write(make(), [filling[:length]], greedy)[0]
        assert answer.reason == "length" and answer.tokens == uncached(filling[:length], greedy, 20)
    for prompt in (filling[:49], filling * 10, []):
        with pytest.raises(InputError, match=f"has {len(prompt)} tokens"):
            write(make(), [prompt], greedy)


def test_the_number_of_new_tokens_is_kept_to(make):
    assert write(make(), [PROMPT], sampling_params(1, CONFIG), 0)[0].tokens == []
    for count in (1, 16, 17):
        assert len(write(make(), [PROMPT], sampling_params(1, CONFIG), count)[0].tokens) == count
    with pytest.raises(InputError, match="negative"):
        write(make(), [PROMPT], sampling_params(1, CONFIG), -1)


def test_a_stop_string_ends_the_text_before_itself(make):
    whole = write(make(), [PROMPT], sampling_params(1, CONFIG))[0].text
    stop = whole[12:17]
    answer = write(make(), [PROMPT], sampling_params(1, CONFIG), stop=[stop])[0]
    assert answer.text == whole[: whole.index(stop)] and answer.reason == "stop"


SCORES = jnp.asarray(np.random.default_rng(0).normal(size=(1, 384)) * 3, jnp.float32)
TINY = GPTConfig(vocab_size=384, context=8, layers=1, heads=1, embed=8)


def drawn(draws: int = 400, scores=SCORES, seen=None, **how) -> np.ndarray:
    """Tokens from the same scores at many positions."""
    settings = jax.tree.map(lambda a: np.repeat(a, draws), sampling_params(1, TINY, **how))
    seen = jnp.zeros(scores.shape, bool) if seen is None else seen
    return np.asarray(
        jax.jit(sample_logits)(
            jnp.repeat(scores, draws, 0),
            settings,
            jnp.repeat(seen, draws, 0),
            jnp.arange(draws, dtype=jnp.int32),
        )
    )


def test_filters_keep_what_they_say():
    ranked = np.argsort(-np.asarray(SCORES[0]))
    probabilities = np.asarray(jax.nn.softmax(SCORES[0]))[ranked]
    assert set(drawn(top_k=3)) == set(ranked[:3])
    nucleus = int((np.cumsum(probabilities) < 0.5).sum()) + 1
    assert set(drawn(top_p=0.5)) == set(ranked[:nucleus])
    assert set(drawn(min_p=0.3)) == set(ranked[probabilities >= 0.3 * probabilities[0]])
    assert (
        set(drawn(top_p=1e-6)) == set(drawn(temperature=0.0)) == set(drawn(top_k=1)) == {ranked[0]}
    )


def test_filters_that_keep_everything_change_nothing():
    plain = drawn(seed=3)
    for how in (
        {"top_k": 384},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"top_k": 384, "top_p": 0.999999999},
    ):
        assert np.array_equal(drawn(seed=3, **how), plain)
    assert not np.array_equal(drawn(seed=4), plain)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.5, -1.0, 0.0, 0.5, 3.0]), min_size=384, max_size=384),
    st.integers(1, 384),
    st.floats(0.0078125, 1.0, width=32),
    st.booleans(),
)
def test_narrowing_keeps_what_a_stable_sort_would_keep(values, top_k, top_p, smooth):
    """Scores of five values tie all the time; a little noise makes every one its own."""
    scores = np.array(values, np.float32) + smooth * np.asarray(SCORES[0])
    order = np.argsort(-scores, kind="stable")
    kept = order[:top_k]
    weights = np.exp(scores[kept] - scores.max()).astype(np.float64)
    before = (np.cumsum(weights) - weights) / weights.sum()
    sure, possible = set(kept[before < top_p - 1e-5]), set(kept[before < top_p + 1e-5])
    settings = jax.tree.map(
        lambda a: np.repeat(a, 2), sampling_params(1, TINY, top_k=top_k, top_p=top_p)
    )
    settings = settings._replace(
        top_k=np.array([top_k, 384], np.int32), top_p=np.array([top_p, 1.0], np.float32)
    )
    narrowed = np.asarray(
        jax.jit(sampling.filter_top_k_top_p)(jnp.asarray(np.stack([scores, scores])), settings)
    )
    assert (
        sure
        <= set(np.flatnonzero(np.isfinite(narrowed[0])))
        <= (possible if top_p < 1 else set(kept))
    )
    assert np.array_equal(narrowed[1], scores)  # whatever its neighbour wanted


@pytest.mark.parametrize("vocab", [384, 300])
def test_a_row_that_wants_all_is_not_narrowed(vocab):
    config = GPTConfig(vocab_size=vocab, context=8, layers=1, heads=1, embed=8)
    for how in ({}, {"top_k": vocab}):
        assert sampling_params(1, config, **how).top_k[0] == config.padded_vocab


def test_log_probabilities_are_those_of_the_logits(params):
    whole, (model, params) = params, generate.prepare_for_decoding(params, CONFIG)
    prompt = np.array([PROMPT], np.int32)
    empty = generate.empty_cache(CONFIG, 1, jnp.float32)
    hidden, _ = GPT(CONFIG).apply({"params": whole}, prompt)
    expected = np.asarray(jax.nn.log_softmax(logits(hidden[0, -1], whole["wte"], TEXT_VOCAB)))
    cache = generate.prefill(model, params, empty, prompt[:, :-1], np.zeros(1, np.int32))
    seen, no = np.zeros((1, CONFIG.padded_vocab), bool), np.zeros(1, bool)
    state = generate.Decoding(cache, prompt[:, -1], np.array([len(PROMPT) - 1], np.int32), seen, no)
    _, tokens, likely = generate.decode(
        model,
        params,
        state,
        sampling_params(1, CONFIG, temperature=3.0, top_p=0.5, seed=3),
        np.array([-1]),
        1,
        1,
        5,
    )
    ranked = np.argsort(-expected, kind="stable")[:5]
    assert likely is not None and list(likely.ids[0, 0]) == list(ranked)
    assert np.allclose(likely.values[0, 0], expected[ranked], atol=1e-5)
    assert np.allclose(likely.drawn[0, 0], expected[int(tokens[0, 0])], atol=1e-5)


def test_the_loop_ends_with_as_many_rows_as_are_enough(params):
    model, params = generate.prepare_for_decoding(params, CONFIG)
    prompts = np.array([PROMPT, PROMPT[::-1]], np.int32)

    def block(stop: int, enough: int) -> np.ndarray:
        cache = generate.prefill(
            model,
            params,
            generate.empty_cache(CONFIG, 2, jnp.float32),
            prompts[:, :-1],
            np.zeros(2, np.int32),
        )
        length, seen, no = (
            np.full(2, len(PROMPT) - 1, np.int32),
            np.zeros((2, CONFIG.padded_vocab), bool),
            np.zeros(2, bool),
        )
        state = generate.Decoding(cache, prompts[:, -1], length, seen, no)
        return np.asarray(
            generate.decode(
                model,
                params,
                state,
                sampling_params(2, CONFIG, seed=1),
                np.array([stop]),
                8,
                enough,
            )[1]
        )

    whole = block(-1, 2)
    stop = whole[0, 2]
    assert stop not in whole[0, :2] and stop not in whole[1, :8]
    assert block(stop, 2).tolist() == [[*whole[0, :3], *[-1] * 13], [*whole[1, :8], *[-1] * 8]]
    assert block(stop, 1).tolist() == [[*row[:3], *[-1] * 13] for row in whole]


def test_one_of_equal_scores_is_one():
    equal = jnp.zeros((1, 384))
    assert (
        len(set(drawn(scores=equal, top_k=1))) == 1 and len(set(drawn(scores=equal, top_k=5))) == 5
    )


def test_the_best_is_the_first_of_the_best():
    scores = (
        np.random.default_rng(0).integers(-3, 4, (64, 384)).astype(np.float32)
    )  # ties within 128 and across
    scores[0], scores[1, :300], scores[2, [130, 131]] = -np.inf, -np.inf, np.inf
    blank = jnp.zeros(scores.shape, bool), jnp.zeros(64, jnp.int32)
    assert (
        sample_logits(
            jnp.array(scores), sampling_params(64, CONFIG, temperature=0.0), *blank
        ).tolist()
        == scores.argmax(-1).tolist()
    )


def test_draws_follow_the_probabilities():
    scores = jnp.log(jnp.array([[0.5, 0.3, 0.2] + [1e-12] * 381]))
    counts = np.bincount(drawn(4000, scores), minlength=3)[:3] / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


def test_the_penalty_makes_seen_tokens_less_likely():
    best = int(jnp.argmax(SCORES))
    seen = jnp.zeros(SCORES.shape, bool).at[0, best].set(True)
    assert set(drawn(temperature=0.0, seen=seen, repetition_penalty=100.0)) != {best}
    assert set(drawn(temperature=0.0, seen=seen)) == {best}


def test_rows_beyond_the_vocabulary_are_never_drawn():
    scores = logits(jnp.ones((1, 1, 8)), jnp.zeros((384, 8)), 300)[:, 0]
    assert drawn(3000, scores, temperature=50.0).max() < 300


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_k": 385},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=str(next(iter(bad.values()))).replace("+", ".")):
        sampling_params(1, TINY, **bad)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(1, 5))
@hypothesis_settings(max_examples=200, deadline=None)
def test_pieces_joined_are_the_text_decoded_at_once(text, size):
    ids = TOKENIZER.encode(text)
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)] + [
        stream.push([], final=True)
    ]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_a_stop_string_is_found_across_pieces(text, stop):
    stream = TextStream(TOKENIZER, stop)
    written = "".join(stream.push([i]) for i in TOKENIZER.encode(text)) + stream.push(
        [], final=True
    )
    ids = TOKENIZER.encode(text)  # the first token that completes a stop string ends the text
    starts = (
        [so_far.index(s) for s in stop if s in so_far]
        for so_far in (TOKENIZER.decode(ids[:n]) for n in range(len(ids) + 1))
    )
    ends = next(filter(None, starts), [])
    assert written == text[: min(ends, default=len(text))] and stream.stopped == bool(ends)
