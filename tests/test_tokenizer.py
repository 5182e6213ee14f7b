"""Text never becomes a special token, and every text comes back from its ids."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minigpt_jax
from minigpt_jax.tokenizer import (
    CHAT_VOCAB,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    STOP_TOKENS,
    TEXT_VOCAB,
    has_chat_tokens,
    load_tokenizer,
)

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz    ",
    "".join(map(chr, range(0x20))) + "\x7f\u00a0\u2028\u3000\ufeff",
    "<|>endoftxusramiy_",
    "0123456789.,;:!?'\"()[]{}=+-*/\\ \t\n\r",
    "äöüßéèñçøåœÆŁžΩλжщ\u0301\u0308",
    "中文字漢日本語한국어ไทยहिन्दी",
    "😀🚀👩‍👩‍👧‍👦🇩🇪👍🏽",
)
SURROGATES = (0xD800, 0xE000)
CODE_POINTS = 0x110000


def random_strings(count: int = 10_000) -> list[str]:
    """Strings of every kind, the same ones on each call.

    A third of them have names of special tokens in them: whole, doubled or cut.
    """
    draw = random.Random(7)
    names = list(SPECIAL_TOKENS)
    pieces = [*names, "<|", "|>", "<|endoftext|", " <|end|> "]
    pieces += [name[:-1] for name in names] + [name[1:] for name in names]
    texts = []
    for i in range(count):
        parts = [draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(0, 30))]
        parts += [any_character(draw) for _ in range(draw.randint(0, 5))]
        if i % 3 == 0:
            parts += draw.choices(pieces, k=draw.randint(1, 4))
        draw.shuffle(parts)
        texts.append("".join(parts))
    texts += [*names, "".join(names)]
    return texts + [name * 3 for name in names] + [f"a{name}b" for name in names]


def any_character(draw: random.Random) -> str:
    """A character of all Unicode, half of them from before the surrogates."""
    first, last = SURROGATES
    return chr(draw.choice([draw.randrange(first), draw.randrange(last, CODE_POINTS)]))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_no_text_gives_a_special_token_and_every_text_comes_back(tokenizer):
    texts = random_strings()
    assert len(texts) > 10_000
    assert sum(any(name in text for name in SPECIAL_TOKENS) for text in texts) > 1_000
    for text in texts:
        ids = tokenizer.encode(text)
        assert max(ids, default=0) < END_OF_TEXT, text
        assert tokenizer.decode(ids) == text
        array = tokenizer.encode_array(text)
        assert array.dtype == np.uint16 and array.ndim == 1
        assert array.tolist() == ids, text


def test_a_document_begins_with_the_separator(tokenizer):
    assert tokenizer.encode_document("") == [END_OF_TEXT]
    assert tokenizer.encode_document("Hello world") == [END_OF_TEXT, 15496, 995]


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("<|end|>\ud800 ok", "<|end|>\ufffd ok"),
    ],
)
def test_lone_surrogates_become_the_replacement_character(tokenizer, text, decoded):
    ids = tokenizer.encode(text)
    assert max(ids) < END_OF_TEXT
    assert tokenizer.encode_array(text).tolist() == ids
    assert tokenizer.decode(ids) == decoded


# Published ids, as in the introductions to GPT-2. Another vocabulary or another way to split text
# would change them.
GPT2_IDS = {
    "Hello, I'm a language model,": "15496 11 314 1101 257 3303 2746 11",
    "Hello world": "15496 995",
    # Digits are merged as other characters are, in groups of any size.
    "In 20000000 BC": "818 939 20483 11843",
}


@pytest.mark.parametrize("text", GPT2_IDS)
def test_the_ids_are_those_of_gpt2(tokenizer, text):
    assert tokenizer.encode(text) == [int(id) for id in GPT2_IDS[text].split()]


def test_an_empty_text_has_no_ids(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode_array("").shape == (0,)


def test_special_tokens_lie_above_all_text_and_decode_to_their_names(tokenizer):
    assert SPECIAL_TOKENS == {
        "<|endoftext|>": 50256,
        "<|user|>": 50257,
        "<|assistant|>": 50258,
        "<|system|>": 50259,
        "<|end|>": 50260,
    }
    assert TEXT_VOCAB == 50257 and CHAT_VOCAB == 50261
    assert sorted(STOP_TOKENS) == [50256, 50260]
    for name, number in SPECIAL_TOKENS.items():
        assert tokenizer.decode([number]) == name


def test_only_the_vocabulary_of_finetuning_has_the_role_markers():
    assert has_chat_tokens(CHAT_VOCAB)
    assert not has_chat_tokens(TEXT_VOCAB)


def test_bytes_are_exact_where_a_token_ends_inside_a_character(tokenizer):
    ids = tokenizer.encode("龘😀")
    # Two tokens for each character.
    assert len(ids) == 4
    assert b"".join(tokenizer.decode_bytes([i]) for i in ids).decode() == "龘😀"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


def test_byte_lengths_count_the_bytes_of_text_and_none_of_special_tokens(tokenizer):
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (CHAT_VOCAB,)
    assert lengths[:END_OF_TEXT].min() >= 1
    assert not lengths[END_OF_TEXT:].any()
    for text in random_strings(300):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


LOAD = """
import json
from minigpt_jax.errors import InputError
from minigpt_jax.tokenizer import load_tokenizer
try:
    print(json.dumps(load_tokenizer().hash))
except InputError as error:
    print(json.dumps(["refused", str(error)]))
"""


# Characters of which real texts have long runs: lines, tables, padding, damaged files.
RUNS = ("a", "=", "-", "0", " ", "\n", "\0", "é", "日", "🙂", "ab", "\ufffd")


@pytest.mark.parametrize("run", RUNS)
def test_a_long_run_of_one_character_takes_no_time(tokenizer, run: str):
    """With old versions of tiktoken this takes a minute, and 1 MB half an hour."""
    text = "x" + run * 200_000 + "x"
    began = time.monotonic()
    ids = tokenizer.encode_array(text)
    # Less than 0.1 s on one core.
    assert time.monotonic() - began < 10
    assert tokenizer.decode(ids) == text


def test_a_damaged_vocabulary_is_refused(tmp_path: Path, tokenizer):
    source = Path(minigpt_jax.__file__).parent
    package = tmp_path / "minigpt_jax"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))

    def load():
        """What the copy of the package prints; it is imported from the current folder."""
        done = subprocess.run(
            [sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        return json.loads(done.stdout)

    # The hash does not depend on where the package lies.
    assert load() == tokenizer.hash
    ranks = package / "assets" / "gpt2.tiktoken"
    content = bytearray(ranks.read_bytes())
    content[len(content) // 2] ^= 1
    ranks.write_bytes(content)
    verdict, message = load()
    assert verdict == "refused"
    assert all(words in message for words in (str(ranks), "sha256", "expected"))
    assert "\n" not in message
