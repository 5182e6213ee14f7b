"""Generation must give what the model without a cache would, for any prompt, batch and seed."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import generate
from minigpt_jax.architectures import make_model, output_head
from minigpt_jax.errors import InputError
from minigpt_jax.generate import BLOCK, Completion, Generator, accept_tokens
from minigpt_jax.loss import logits
from minigpt_jax.model_config import ARCHITECTURES, GPTConfig
from minigpt_jax.sampling import Occurrences, SamplingParams, sample_logits, sampling_params
from minigpt_jax.tokenizer import END, END_OF_TEXT, USER, load_tokenizer
from tests.models import weights

CONTEXT = 48
# Ids of single bytes and of a few common pairs: enough for text, and fast.
CONFIG = GPTConfig(vocab_size=300, context=CONTEXT, layers=1, heads=2, embed=16)
PROMPT = [299, 7, 41, 180, 7, 256]
NONE_RECENT = np.full((1, 1), -1, np.int32)
OTHER = [299, 260, 33]
GREEDY = sampling_params(1, CONFIG, temperature=0.0)
DRAWN = sampling_params(1, CONFIG)


# For the tests in which the model matters.
for_each_architecture = pytest.mark.parametrize("config", ARCHITECTURES, indirect=True)


@pytest.fixture(scope="module")
def config(request) -> GPTConfig:
    return replace(CONFIG, architecture=getattr(request, "param", "gpt2"))


@pytest.fixture(scope="module")
def params(config) -> dict:
    return weights(config)


@pytest.fixture(scope="module")
def make(config, params):
    return partial(Generator, params, config, load_tokenizer())


def complete(
    generator: Generator, prompts, settings: SamplingParams = DRAWN, count: int = 20, stop=()
) -> list[Completion]:
    """The completions, which the pieces of the stream must add up to."""
    pieces = list(generator.stream(prompts, settings, max_new_tokens=count, stop=stop))
    for row, completion in enumerate(generator.completions):
        assert "".join(piece for r, piece in pieces if r == row) == completion.text
    return generator.completions


@pytest.fixture(scope="module")
def uncached(config, params):
    """The new tokens from full forward passes over a padded row: no cache, no loop."""

    @jax.jit
    def next_token(ids, length, settings, occurrences):
        hidden, _ = make_model(config).apply({"params": params}, ids)
        last = hidden[0, length - 1][None]
        scores = logits(last, output_head(params), config.vocab_size, config.logit_cap)
        return sample_logits(scores, settings, occurrences, NONE_RECENT, length[None])

    def run(prompt, settings, count):
        ids = list(prompt)
        while len(ids) < min(len(prompt) + count, CONTEXT):
            padded = np.zeros((1, CONTEXT), np.int32)
            padded[0, : len(ids)] = ids
            occurrences = Occurrences.none(1, config)
            occurrences.in_prompt[0, list(prompt)] = True
            np.add.at(occurrences.drawn[0], ids[len(prompt) :], 1)
            ids.append(int(next_token(padded, np.int32(len(ids)), settings, occurrences)[0]))
        return ids[len(prompt) :]

    return run


@for_each_architecture
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_are_those_of_the_model_without_a_cache(make, uncached, temperature, prompt):
    settings = sampling_params(1, CONFIG, temperature=temperature, seed=5)
    (completion,) = complete(make(), [prompt], settings, 30)
    assert len(completion.tokens) == 30
    assert completion.tokens == uncached(prompt, settings, 30)


OFF = {
    name: getattr(DRAWN, name)
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "bias")
}


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.2},
        {"frequency_penalty": -0.5, "logit_bias": {7: 2.5, 41: -100}},
    ],
)
def test_penalties_count_the_tokens_of_this_and_of_earlier_blocks(make, uncached, sampling):
    settings = sampling_params(1, CONFIG, temperature=0.1, seed=5, **sampling)
    generator = make()
    for prompt in (PROMPT, OTHER):
        (completion,) = complete(generator, [prompt], settings, 40)
        assert completion.tokens == uncached(prompt, settings, 40)
    assert len(completion.tokens) > 2 * BLOCK
    assert completion.tokens != uncached(OTHER, settings._replace(**OFF), 40)


@for_each_architecture
def test_a_text_continues_where_the_cache_has_to_grow(make, uncached, monkeypatch):
    # Less than the context, so that there is room to grow.
    monkeypatch.setattr(generate, "MIN_CACHE", 16)
    generator = make()
    (first,) = complete(generator, [PROMPT], GREEDY, 4)
    before = generator._cache[0].k.shape[2]
    longer = [*PROMPT, *first.tokens, *OTHER]
    assert complete(generator, [longer], GREEDY, 25)[0].tokens == uncached(longer, GREEDY, 25)
    assert before < generator._cache[0].k.shape[2] <= CONTEXT


@for_each_architecture
def test_a_row_does_not_depend_on_the_other_rows_of_its_batch(make):
    (alone,) = complete(make(), [PROMPT], sampling_params(1, CONFIG, seed=8))
    # Seeds 7, 8 and 9.
    settings = sampling_params(3, CONFIG, seed=7)
    batch = complete(make(rows=3), [PROMPT[:1], PROMPT, OTHER], settings)
    assert batch[1] == alone
    assert batch[0].tokens != alone.tokens


def test_the_cache_of_an_earlier_call_changes_no_text(make):
    generator = make()
    (first,) = complete(generator, [PROMPT])
    longer = [*PROMPT, *first.tokens[:7], *OTHER]
    assert complete(generator, [longer]) == complete(make(), [longer])
    # And back to the shorter prompt.
    assert complete(generator, [PROMPT]) == [first]


@for_each_architecture
def test_numbers_that_overflow_in_one_call_change_no_later_one(config, make, params):
    """The logits of a text that reaches position 30, where token 99 is, are NaN."""
    table, row = ("wpe", 30) if config.is_gpt2 else ("wte", 99)
    overflowing = params | {table: params[table].at[row].set(jnp.nan)}
    generator = Generator(overflowing, config, load_tokenizer())
    complete(generator, [[41] * 30 + [99] * 5], GREEDY, 5)
    for prompt in (PROMPT, PROMPT[:1]):
        assert complete(generator, [prompt], DRAWN, 10) == complete(make(), [prompt], DRAWN, 10)


def test_a_text_ends_with_the_context(make, uncached):
    prompt = [41] * CONTEXT
    for length in (CONTEXT - 1, CONTEXT):
        (completion,) = complete(make(), [prompt[:length]], GREEDY)
        assert completion.finish_reason == "length"
        assert completion.tokens == uncached(prompt[:length], GREEDY, 20)


@pytest.mark.parametrize("length", [0, CONTEXT + 1, 10 * CONTEXT])
def test_a_prompt_that_is_empty_or_longer_than_the_context_is_refused(make, length):
    with pytest.raises(InputError, match=rf"has {length} tokens, this model takes 1 to {CONTEXT}"):
        complete(make(), [[41] * length])


@pytest.mark.parametrize("count", [0, 1, 16, 17])
def test_a_text_has_as_many_new_tokens_as_asked_for(make, count):
    (completion,) = complete(make(), [PROMPT], count=count)
    assert len(completion.tokens) == count
    assert completion.finish_reason == "length"


def test_a_negative_number_of_new_tokens_is_refused(make):
    with pytest.raises(InputError, match="-1 is negative"):
        complete(make(), [PROMPT], count=-1)


def test_a_stop_string_ends_the_text_before_itself(make):
    whole = complete(make(), [PROMPT])[0].text
    stop = whole[12:17]
    (completion,) = complete(make(), [PROMPT], stop=[stop])
    assert completion.text == whole[: whole.index(stop)]
    assert completion.finish_reason == "stop"


def test_complete_returns_what_stream_yields(make):
    streamed = complete(make(), [PROMPT])
    assert make().complete([PROMPT], DRAWN, max_new_tokens=20) == streamed


@pytest.mark.parametrize(
    ("new_tokens", "max_tokens", "kept", "finish_reason"),
    [
        # (tokens of a block, tokens that may be added, tokens accepted, why the text ends)
        ([5, 6, 7], 9, [5, 6, 7], None),
        ([5, END], 9, [5], "stop"),
        ([END_OF_TEXT, 6], 9, [], "stop"),
        # A role marker is no end.
        ([5, USER, 7], 9, [5, USER, 7], None),
        ([5, 6, 7], 3, [5, 6, 7], "length"),
        ([5, 6, 7], 2, [5, 6], "length"),
        # The stop token comes after the last token that may be added.
        ([5, 6, END], 2, [5, 6], "length"),
        ([5, END], 2, [5], "stop"),
        ([], 9, [], None),
    ],
)
def test_tokens_are_accepted_up_to_a_stop_token_or_the_limit(
    new_tokens, max_tokens, kept, finish_reason
):
    accepted = accept_tokens(new_tokens, length=10, max_tokens=max_tokens, context=100)
    assert accepted == (kept, finish_reason)


def test_tokens_are_accepted_until_the_context_is_full():
    assert accept_tokens([5, 6], length=97, max_tokens=9, context=100) == ([5, 6], None)
    assert accept_tokens([5, 6], length=98, max_tokens=9, context=100) == ([5, 6], "length")
    assert accept_tokens([5, END], length=98, max_tokens=9, context=100) == ([5], "stop")
    assert accept_tokens([], length=100, max_tokens=9, context=100) == ([], "length")
