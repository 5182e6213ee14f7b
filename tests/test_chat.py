"""The chat template and its loss mask: answers have weight 1, and text never becomes a marker."""

import random
import re
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

MARKERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
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
    """Well-formed conversations of several lengths, with many names of special tokens in them.

    The same ones on each call.
    """
    draw = random.Random(3)
    made = []
    for _ in range(count):
        roles = ["system"] * draw.randint(0, 1) + ["user", "assistant"] * draw.randint(1, 4)
        made.append([{"role": role, "content": draw.choice(CONTENTS)} for role in roles])
    return made


def test_a_weight_of_zero_changes_the_mask_of_its_answer_alone(tokenizer):
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": "Hi", "weight": n} for n, role in enumerate(roles)]
    messages[1]["weight"], messages[3]["weight"] = 0, 1
    without = [{"role": m["role"], "content": m["content"]} for m in messages]
    tokens, mask = render(messages, tokenizer)
    assert tokens == render(without, tokenizer)[0]
    assert sum(mask) == len(tokenizer.encode("Hi")) + 1 and mask[-1] == 1
    assert prompt(messages[:3], tokenizer) == prompt(without[:3], tokenizer)


def test_the_template_is_the_one_in_its_docstring(tokenizer):
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
                start = prompt(messages[:i], tokenizer)
                assert tokens[: len(start)] == start
                # The answer follows: a model answers exactly where it was trained to answer.
                answer = [*tokenizer.encode(message["content"]), END]
                assert tokens[len(start) : len(start) + len(answer)] == answer


def test_the_mask_covers_each_answer_and_its_end_only(tokenizer):
    for messages in conversations():
        tokens, mask = render(messages, tokenizer)
        assert len(tokens) == len(mask)
        assert set(mask) <= {0, 1}
        pairs = zip(tokens, mask, strict=True)
        groups = groupby(pairs, key=lambda pair: pair[1])
        learned = [[token for token, _ in group] for weight, group in groups if weight]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert learned == [[*tokenizer.encode(answer), END] for answer in answers]


def test_names_of_special_tokens_in_messages_stay_text(tokenizer):
    for messages in conversations():
        tokens, _ = render(messages, tokenizer)
        expected = [END_OF_TEXT]
        for message in messages:
            expected += [MARKERS[message["role"]], END]
        assert [token for token in tokens if token >= END_OF_TEXT] == expected
        groups = groupby(tokens, key=lambda token: token < END_OF_TEXT)
        texts = [tokenizer.decode(list(group)) for is_text, group in groups if is_text]
        assert texts == [m["content"] for m in messages if m["content"]]


def test_of_all_orders_of_roles_only_alternating_turns_are_accepted(tokenizer):
    turns = [("user", "assistant", "user", "assistant")[:length] for length in range(1, 5)]
    good = {*turns, *(("system", *roles) for roles in turns if len(roles) < 4)}
    for length in range(5):
        for roles in product(MARKERS, repeat=length):
            messages = [{"role": role, "content": "x"} for role in roles]
            if roles in good:
                render(messages, tokenizer)
            else:
                with pytest.raises(BadConversation, match=r"^role order: found ") as refused:
                    render(messages, tokenizer)
                assert refused.value.reason == "role order"
                # The prefix before the message that the error names is in order.
                position = re.search(r"as message (\d+)", str(refused.value))
                wrong = int(position[1]) - 1 if position else len(roles)
                in_order = roles[:wrong]
                assert in_order in good or in_order in ((), ("system",))
                assert (*in_order, *roles[wrong : wrong + 1]) not in good
            if roles not in good or roles[-1] != "user":
                with pytest.raises(BadConversation) as refused:
                    prompt(messages, tokenizer)
                assert refused.value.reason == "role order"


@pytest.mark.parametrize("role", ["tool", "User", "", None, 3])
def test_an_unknown_role_is_named_when_it_is_refused(tokenizer, role):
    unknown = {"role": role, "content": "x"}
    for messages in ([unknown], [{"role": "user", "content": "x"}, unknown]):
        with pytest.raises(
            BadConversation, match="expected one of system, user, assistant"
        ) as refused:
            render(messages, tokenizer)
        assert refused.value.reason == "unknown role"
        assert repr(role) in str(refused.value)


def test_a_bad_conversation_ends_a_program_in_one_line():
    assert issubclass(BadConversation, InputError)
