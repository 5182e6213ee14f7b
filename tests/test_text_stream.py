"""The pieces of a text stream must add up to the text, whatever the tokens and the stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_jax.text_stream import TextStream
from minigpt_jax.tokenizer import SPECIAL_TOKENS, load_tokenizer

TOKENIZER = load_tokenizer()
REPLACEMENT = "\ufffd"
STOP_STRINGS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_joined_pieces_are_the_whole_text(text, size):
    ids = TOKENIZER.encode(text)
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    pieces.append(stream.push([], final=True))
    assert "".join(pieces) == text
    assert REPLACEMENT in text or all(REPLACEMENT not in piece for piece in pieces)


@given(st.text("ab", max_size=30), STOP_STRINGS)
@settings(max_examples=200, deadline=None)
def test_the_text_ends_before_a_stop_string_that_extends_over_pieces(text, stop):
    ids = TOKENIZER.encode(text)
    stream = TextStream(TOKENIZER, stop)
    found = "".join(stream.push([id]) for id in ids) + stream.push([], final=True)
    end = first_stop(ids, stop)
    assert stream.stopped == (end is not None)
    assert found == text[:end]


def first_stop(ids: list[int], stop: list[str]) -> int | None:
    """Where the text ends: the first token that completes a stop string decides."""
    for count in range(len(ids) + 1):
        text = TOKENIZER.decode(ids[:count])
        starts = [text.index(s) for s in stop if s in text]
        if starts:
            return min(starts)
    return None


def test_text_that_may_become_a_stop_string_is_kept_until_it_cannot():
    stream = TextStream(TOKENIZER, ["Hello there"])
    assert stream.push(TOKENIZER.encode("Say Hello")) == "Say "
    assert stream.push(TOKENIZER.encode(" you")) == "Hello you"
    assert stream.push(TOKENIZER.encode(" Hello")) == " "
    assert stream.push([], final=True) == "Hello"


@pytest.mark.parametrize("special", SPECIAL_TOKENS.values(), ids=list(SPECIAL_TOKENS))
def test_special_tokens_have_no_text(special):
    stream = TextStream(TOKENIZER)
    assert stream.push([special, *TOKENIZER.encode("sun"), special], final=True) == "sun"
