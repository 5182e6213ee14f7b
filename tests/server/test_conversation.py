"""Whatever the order in which a client sends messages, the template gets a conversation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_jax import chat
from minigpt_jax.server.api_error import ApiError
from minigpt_jax.server.conversation import turns
from minigpt_jax.tokenizer import load_tokenizer


def messages(*pairs: tuple[str, str]) -> list[dict]:
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": names[role], "content": text} for role, text in pairs]


@pytest.mark.parametrize(
    ("given_messages", "expected"),
    [
        ([("u", "Hi")], [("u", "Hi")]),
        ([("s", "S"), ("u", "Hi")], [("s", "S"), ("u", "Hi")]),
        ([("u", "One"), ("u", "Two")], [("u", "One\n\nTwo")]),
        (
            [("u", "One"), ("a", "A"), ("a", "B"), ("u", "Two")],
            [("u", "One"), ("a", "A\n\nB"), ("u", "Two")],
        ),
        # A greeting.
        ([("a", "Hello!"), ("u", "Hi")], [("u", "Hi")]),
        ([("s", "S"), ("a", "Hello!"), ("u", "Hi")], [("s", "S"), ("u", "Hi")]),
        # A system message at another place, and several of them.
        (
            [("u", "One"), ("a", "A"), ("s", "S"), ("u", "Two")],
            [("s", "S"), ("u", "One"), ("a", "A"), ("u", "Two")],
        ),
        ([("d", "D"), ("s", "S"), ("u", "Hi")], [("s", "D\n\nS"), ("u", "Hi")]),
        ([("u", "One"), ("s", "S"), ("u", "Two")], [("s", "S"), ("u", "One\n\nTwo")]),
        # Messages without text, as a chat with tools and a stopped answer leave them.
        ([("s", ""), ("u", "Hi")], [("u", "Hi")]),
        ([("u", "One"), ("a", " \n"), ("u", "Two")], [("u", "One\n\nTwo")]),
        ([("u", "Hi"), ("a", "")], [("u", "Hi")]),
        ([("u", ""), ("u", "Hi")], [("u", "Hi")]),
        ([("u", "")], [("u", "")]),
    ],
)
def test_messages_become_turns(given_messages, expected):
    assert turns(messages(*given_messages)) == messages(*expected)


def test_an_answer_may_lack_its_content_and_no_other_message():
    question = {"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]}
    for empty in ({"role": "assistant"}, {"role": "assistant", "content": None}):
        assert turns([question, empty]) == [{"role": "user", "content": "Hi"}]
    with pytest.raises(ApiError, match=r"messages\[1\].content: is required") as error:
        turns([question, {"role": "user", "content": None}])
    assert error.value.param == "messages[1].content"


@given(st.lists(st.tuples(st.sampled_from("sdua"), st.sampled_from(["", "One", "Two "]))))
def test_the_template_takes_every_conversation_that_ends_with_a_question(pairs):
    conversation = turns(messages(*pairs, ("u", "End")))
    chat.prompt(conversation, load_tokenizer())
    # No text is lost but the answers before the first question.
    first = [role for role, text in [*pairs, ("u", "End")] if text or role == "a"].index("u")
    roles_and_texts = [(role, text) for role, text in pairs if text or role == "a"]
    kept = [text for i, (role, text) in enumerate(roles_and_texts) if role != "a" or i > first]
    texts = [turn["content"] for turn in conversation]
    for word in ("One", "Two"):
        assert sum(text.count(word) for text in texts) == sum(word in text for text in kept)
    assert conversation[-1]["content"].endswith("End")


def test_a_conversation_without_a_question_at_its_end_stays_an_error():
    for pairs in ([("a", "Hi")], [("u", "One"), ("a", "A")], [("s", "S")]):
        with pytest.raises(chat.BadConversation):
            chat.prompt(turns(messages(*pairs)), load_tokenizer())
