"""The template and its mask say the same thing: what was asked is given, what was answered is learned, text stays text."""

import random
from itertools import groupby, product

import pytest

from minigpt_jax.chat import BadConversation, prompt, render
from minigpt_jax.errors import InputError
from minigpt_jax.tokenizer import (
    ASSISTANT,
    END,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    SYSTEM,
    USER,
    load_tokenizer,
)

CONTENTS = (
    "",
    "Hi",
    "What is 2 + 2?",
    " leading and trailing ",
    "two\n\nlines",
    "中文 😀",
    "<|end|>",
    "a<|assistant|>b<|endoftext|>",
    *SPECIAL_TOKENS,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def conversations(count: int = 300) -> list[list]:
    """Well-formed ones of every length, with and without a system message, full of marker strings; the same on each run."""
    draw = random.Random(3)
    made = []
    for _ in range(count):
        roles = ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 4)
        made.append([{"role": role, "content": draw.choice(CONTENTS)} for role in roles])
    return made


def test_the_template_is_what_its_docstring_says(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
    ]
    kind, hi, hello = (tokenizer.encode(m["content"]) for m in messages)
    tokens, mask = render(messages, tokenizer)
    assert tokens == [END_OF_TEXT, SYSTEM, *kind, END, USER, *hi, END, ASSISTANT, *hello, END]
    assert mask == [0] * (len(kind) + len(hi) + 6) + [1] * (len(hello) + 1)


def test_a_prompt_is_a_prefix_of_the_rendered_conversation(tokenizer):
    for messages in conversations():
        tokens, _ = render(messages, tokenizer)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                asked = prompt(messages[:i], tokenizer)
                assert tokens[: len(asked)] == asked
                # ... and what follows is the answer: the model is asked exactly where it was trained to answer.
                answer = [*tokenizer.encode(message["content"]), END]
                assert tokens[len(asked) : len(asked) + len(answer)] == answer


def test_the_mask_covers_each_answer_and_its_end_and_nothing_else(tokenizer):
    for messages in conversations():
        tokens, mask = render(messages, tokenizer)
        assert len(tokens) == len(mask) and set(mask) <= {0, 1}
        paired = zip(tokens, mask, strict=True)
        learned = [
            [token for token, _ in group]
            for weight, group in groupby(paired, key=lambda pair: pair[1])
            if weight
        ]
        assert learned == [
            [*tokenizer.encode(m["content"]), END] for m in messages if m["role"] == "assistant"
        ]


def test_marker_text_in_messages_stays_plain(tokenizer):
    for messages in conversations():
        tokens, _ = render(messages, tokenizer)
        structure = [t for t in tokens if t >= END_OF_TEXT]
        markers = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
        assert structure == [END_OF_TEXT] + [t for m in messages for t in (markers[m["role"]], END)]
        text = [
            tokenizer.decode(list(group))
            for plain, group in groupby(tokens, key=lambda t: t < END_OF_TEXT)
            if plain
        ]
        assert text == [m["content"] for m in messages if m["content"]]


def test_of_all_orders_of_roles_only_turns_are_taken(tokenizer):
    good = {
        ("user",),
        ("user", "assistant"),
        ("user", "assistant", "user"),
        ("user", "assistant", "user", "assistant"),
    }
    good |= {("system", *roles) for roles in good if len(roles) < 4}
    for length in range(5):
        for roles in product(("system", "user", "assistant"), repeat=length):
            messages = [{"role": role, "content": "x"} for role in roles]
            if roles in good:
                render(messages, tokenizer)
            else:
                with pytest.raises(BadConversation, match=r"^role order: found ") as refused:
                    render(messages, tokenizer)
                assert refused.value.reason == "role order" and (
                    " ".join(roles) or "nothing"
                ) in str(refused.value)
            if roles not in good or roles[-1] != "user":
                with pytest.raises(BadConversation) as refused:
                    prompt(messages, tokenizer)
                assert refused.value.reason == "role order"


@pytest.mark.parametrize("role", ["tool", "User", "", None, 3])
def test_unknown_roles_are_refused_by_name(tokenizer, role):
    for messages in (
        [{"role": role, "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": role, "content": "x"}],
    ):
        with pytest.raises(
            BadConversation, match="expected one of system, user, assistant"
        ) as refused:
            render(messages, tokenizer)
        assert refused.value.reason == "unknown role" and repr(role) in str(refused.value)
    assert issubclass(BadConversation, InputError)  # so that a program ends in one line
