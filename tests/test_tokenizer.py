"""Text can never produce structure, and nothing is lost on the way to ids and back."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minigpt_jax
from minigpt_jax.tokenizer import (
    CHAT_VOCAB,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TEXT_VOCAB,
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


def random_strings(count: int = 10_000) -> list[str]:
    """Strings of every kind, the same on each run, a third of them with marker strings whole, doubled or cut."""
    draw, markers = random.Random(7), list(SPECIAL_TOKENS)
    pieces = [
        *markers,
        *(m[:-1] for m in markers),
        *(m[1:] for m in markers),
        "<|",
        "|>",
        "<|endoftext|",
        " <|end|> ",
    ]
    texts = []
    for i in range(count):
        letters = [draw.choice(draw.choice(ALPHABETS)) for _ in range(draw.randint(0, 30))]
        letters += [
            chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
            for _ in range(draw.randint(0, 5))
        ]
        if i % 3 == 0:
            letters += draw.choices(pieces, k=draw.randint(1, 4))
        draw.shuffle(letters)
        texts.append("".join(letters))
    return [
        *texts,
        *markers,
        "".join(markers),
        *(m * 3 for m in markers),
        *(f"a{m}b" for m in markers),
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_no_text_makes_a_structure_id_and_every_text_comes_back(tokenizer):
    texts = random_strings()
    assert len(texts) > 10_000 and sum(any(m in t for m in SPECIAL_TOKENS) for t in texts) > 1_000
    for text in texts:
        ids = tokenizer.encode(text)
        assert max(ids, default=0) < END_OF_TEXT, text
        assert tokenizer.decode(ids) == text
        array = tokenizer.encode_array(text)
        assert array.dtype == np.uint16 and array.ndim == 1
        assert array.tolist() == ids, text


def test_lone_surrogates_become_the_replacement_character(tokenizer):
    for text in ("\ud800", "a\udfffb", "\ude00\ud83d", "<|end|>\ud800 ok"):
        ids = tokenizer.encode(text)
        assert max(ids) < END_OF_TEXT and tokenizer.encode_array(text).tolist() == ids
        assert tokenizer.decode(ids) == "".join(
            "\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text
        )


def test_the_ids_are_those_of_gpt2(tokenizer):
    """Published ids, as in the introductions to GPT-2; another vocabulary or another way to cut words would change them."""
    assert tokenizer.encode("Hello, I'm a language model,") == [
        15496,
        11,
        314,
        1101,
        257,
        3303,
        2746,
        11,
    ]
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("In 20000000 BC") == [
        818,
        939,
        20483,
        11843,
    ]  # digits are merged like letters, in groups of any size
    assert tokenizer.encode("") == [] and tokenizer.encode_array("").shape == (0,)


def test_structure_ids_lie_above_all_text_and_decode_to_their_names(tokenizer):
    assert SPECIAL_TOKENS == {
        "<|endoftext|>": 50256,
        "<|user|>": 50257,
        "<|assistant|>": 50258,
        "<|system|>": 50259,
        "<|end|>": 50260,
    }
    assert TEXT_VOCAB == 50257 and CHAT_VOCAB == 50261
    for name, number in SPECIAL_TOKENS.items():
        assert tokenizer.decode([number]) == name


def test_bytes_are_exact_where_one_token_splits_a_letter(tokenizer):
    ids = tokenizer.encode("龘😀")
    assert len(ids) == 4  # letters of two tokens each, or this says nothing
    assert b"".join(tokenizer.decode_bytes([i]) for i in ids).decode() == "龘😀"
    assert tokenizer.decode(ids[:1]) == "\ufffd"


def test_byte_lengths_count_the_bytes_of_text_and_nothing_for_structure(tokenizer):
    lengths = tokenizer.byte_lengths()
    assert (
        lengths.shape == (CHAT_VOCAB,)
        and lengths[:END_OF_TEXT].min() >= 1
        and not lengths[END_OF_TEXT:].any()
    )
    for text in random_strings(300):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_damaged_vocabulary_is_refused(tmp_path: Path, tokenizer):
    package = tmp_path / "minigpt_jax"
    shutil.copytree(
        Path(minigpt_jax.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    ranks = package / "assets" / "gpt2.tiktoken"
    program = (
        "import json, sys\nfrom minigpt_jax.errors import InputError\nfrom minigpt_jax.tokenizer import load_tokenizer\n"
        "try: print(json.dumps(load_tokenizer().hash))\nexcept InputError as error: print(json.dumps(['refused', str(error)]))"
    )

    def load():
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return json.loads(done.stdout)

    assert (
        load() == tokenizer.hash
    )  # the copy is what is loaded, and the hash does not depend on where it lies
    content = bytearray(ranks.read_bytes())
    content[len(content) // 2] ^= 1
    ranks.write_bytes(content)
    verdict, message = load()
    assert (
        verdict == "refused"
        and str(ranks) in message
        and "sha256" in message
        and "expected" in message
        and "\n" not in message
    )
