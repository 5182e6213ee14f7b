"""The exported tokenizer and chat template give our ids, for any text and any conversation."""

import json
import random

import jinja2
import jinja2.sandbox
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_jax import chat
from minigpt_jax.interop import vocabulary
from minigpt_jax.tokenizer import CHAT_VOCAB, SPECIAL_TOKENS, TEXT_VOCAB, load_tokenizer

OURS = load_tokenizer()
TEXTS = [
    "",
    " ",
    "\n\n  \t",
    "Hello, I'm a language model,",
    "don't can't we'll I've they're it's I'd",
    "1234567890 3.14 1e-9",
    "élan naïve 日本語 🙂👩‍👩‍👧",
    "    indented\n        more",
    "\x00\x01\x7f",
    "tabs\tand\r\nlines",
    " leading and trailing ",
    "word" * 300,
    "≠≤∞ ½ ﬁ",
    "\u200b\ufeff",
]


@pytest.fixture(scope="module")
def theirs() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(vocabulary.tokenizer_json(CHAT_VOCAB)))


def test_the_vocabulary_is_gpt2s():
    ids = vocabulary.vocabulary()
    assert (len(ids), len(vocabulary.merges())) == (50256, 50000)
    # The beginning of GPT-2's merges.txt, and words whose ids are known.
    first = [" ".join(pair) for pair in vocabulary.merges()[:6]]
    assert first == ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n"]
    assert (ids["!"], ids["Hello"], ids["Ġlanguage"]) == (0, 15496, 3303)


def test_a_base_model_has_one_special_token():
    assert vocabulary.special_tokens(TEXT_VOCAB) == {"<|endoftext|>": 50256}
    assert vocabulary.special_tokens(CHAT_VOCAB) == SPECIAL_TOKENS


def test_a_finetuned_model_stops_at_the_end_of_a_turn():
    assert vocabulary.stop_tokens(CHAT_VOCAB) == [50260, 50256]
    assert vocabulary.stop_tokens(TEXT_VOCAB) == [50256]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_json_gives_our_ids(theirs: tokenizers.Tokenizer, text: str):
    assert theirs.encode(text).ids == OURS.encode(text)
    assert theirs.decode(OURS.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text().filter(lambda text: not any(name in text for name in SPECIAL_TOKENS)))
def test_tokenizer_json_gives_our_ids_on_any_text(theirs: tokenizers.Tokenizer, text: str):
    assert theirs.encode(text).ids == OURS.encode(text)


def test_special_tokens_are_single_tokens(theirs: tokenizers.Tokenizer):
    for name, id in SPECIAL_TOKENS.items():
        assert theirs.encode(name).ids == [id]


def test_a_base_models_tokenizer_reads_role_markers_as_text():
    base = tokenizers.Tokenizer.from_str(json.dumps(vocabulary.tokenizer_json(TEXT_VOCAB)))
    assert base.encode("<|user|>").ids == OURS.encode("<|user|>")
    assert base.encode("<|endoftext|>").ids == [50256]


def conversation(draw: random.Random) -> list[chat.Message]:
    """Any number of turns that the user ends, with and without a system message."""
    roles = ["system"] if draw.random() < 0.5 else []
    roles += ["user", "assistant"] * draw.randrange(4) + ["user"]
    return [{"role": role, "content": draw.choice(TEXTS)} for role in roles]


def apply(messages, **arguments) -> str:
    """The text that transformers and llama.cpp make from messages with the template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(text: str):
        raise jinja2.TemplateError(text)

    functions = {"raise_exception": raise_exception}
    template = environment.from_string(vocabulary.CHAT_TEMPLATE, globals=functions)
    return template.render(messages=messages, **arguments)


@pytest.mark.parametrize("seed", range(50))
def test_the_template_gives_the_ids_of_chat(theirs: tokenizers.Tokenizer, seed: int):
    messages = conversation(random.Random(seed))
    prompt = apply(messages, add_generation_prompt=True)
    assert theirs.encode(prompt).ids == chat.prompt(messages, OURS)
    answered: list[chat.Message] = [*messages, {"role": "assistant", "content": "Yes."}]
    assert theirs.encode(apply(answered)).ids == chat.render(answered, OURS)[0]


@pytest.mark.parametrize(
    "roles",
    [
        "",
        "system",
        "assistant",
        "user user",
        "user system",
        "system assistant",
        "user assistant assistant",
        "user tool",
    ],
)
def test_the_template_refuses_what_chat_refuses(roles: str):
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(chat.BadConversation):
        chat.render(messages, OURS)
    with pytest.raises((jinja2.TemplateError, jinja2.UndefinedError)):
        apply(messages)


@pytest.mark.parametrize("content", [None, 3, [{"type": "text", "text": "x"}]])
def test_the_template_accepts_text_only(content):
    with pytest.raises(jinja2.TemplateError, match="must be text"):
        apply([{"role": "user", "content": content}])


def test_an_answer_follows_only_a_message_of_the_user():
    messages: list[chat.Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    with pytest.raises(chat.BadConversation):
        chat.prompt(messages, OURS)
    with pytest.raises(jinja2.TemplateError, match="an answer follows"):
        apply(messages, add_generation_prompt=True)
