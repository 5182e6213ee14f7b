"""A loaded run in three lines of Python: load it, complete a text, chat."""

import pytest

from minigpt_jax import chat
from minigpt_jax.errors import InputError
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import CHAT_VOCAB, END, TEXT_VOCAB, load_tokenizer
from tests.known_answers import params_that_draw

TOKENIZER = load_tokenizer()
CONTEXT = 32
WORDS = ("sun", "rain")
QUESTION = [chat.Message(role="user", content="Weather?")]


def loaded_run(vocab_size: int) -> LoadedRun:
    """A run whose model draws from WORDS and, if it can chat, from the end of an answer."""
    config = GPTConfig(vocab_size=vocab_size, context=CONTEXT, layers=1, heads=1, embed=8)
    tokens = [TOKENIZER.encode(" " + word)[0] for word in WORDS]
    if vocab_size == CHAT_VOCAB:
        tokens.append(END)
    return LoadedRun(params_that_draw(tokens, config), config, TOKENIZER)


@pytest.fixture(scope="module")
def base() -> LoadedRun:
    return loaded_run(TEXT_VOCAB)


@pytest.fixture(scope="module")
def finetuned() -> LoadedRun:
    return loaded_run(CHAT_VOCAB)


def test_complete_returns_the_continuation_without_the_text(base):
    text = base.complete("Weather?", max_new_tokens=5)
    assert len(text.split()) == 5
    assert set(text.split()) <= set(WORDS)


def test_chat_returns_an_answer_that_ends_at_the_stop_token(finetuned):
    answers = [finetuned.chat(QUESTION, max_new_tokens=16, seed=seed) for seed in range(5)]
    assert all(set(answer.split()) <= set(WORDS) for answer in answers)
    # One draw in three ends the answer: some have fewer words than they may have.
    assert {len(answer.split()) for answer in answers} != {16}


def test_the_stop_token_is_no_part_of_a_completion(finetuned):
    generator = finetuned.generator(rows=4)
    prompt = chat.prompt(QUESTION, TOKENIZER)
    settings = sampling_params(4, finetuned.config)
    completions = generator.complete([prompt] * 4, settings, max_new_tokens=16)
    stopped = [i for i, done in enumerate(completions) if done.finish_reason == "stop"]
    assert stopped
    for i in stopped:
        assert generator.ids[i] == [*prompt, *completions[i].tokens, END]
        assert completions[i].text == TOKENIZER.decode(completions[i].tokens)


def test_sampling_settings_reach_the_generator(base):
    one = base.complete("Weather?", max_new_tokens=20, seed=1)
    assert base.complete("Weather?", max_new_tokens=20, seed=1) == one
    assert base.complete("Weather?", max_new_tokens=20, seed=2) != one
    greedy = base.complete("Weather?", max_new_tokens=20, temperature=0)
    assert len(set(greedy.split())) == 1
    with pytest.raises(InputError, match="temperature -1"):
        base.complete("Weather?", temperature=-1)


def test_only_a_finetuned_model_can_chat(base, finetuned):
    assert finetuned.can_chat and not base.can_chat
    with pytest.raises(InputError, match="was not finetuned"):
        base.chat(QUESTION)


def test_a_conversation_out_of_order_is_refused(finetuned):
    with pytest.raises(InputError, match="the last message"):
        finetuned.chat([chat.Message(role="assistant", content="Hello")])


def test_a_text_that_does_not_fit_into_the_context_is_refused(base):
    with pytest.raises(InputError, match=f"1 to {CONTEXT}"):
        base.complete("word " * CONTEXT)
