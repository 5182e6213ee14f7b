"""gigatoken is faster and changes nothing: the same ids for any text, also when it fails."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.encoders import encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer, Unusable, expect_equal
from data_tools.fineweb import Recipe, prepare
from minigpt_jax.token_stream import read_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, RANKS, SPECIAL_TOKENS, load_tokenizer
from tests.data_tools.preparations import contents, write_jsonl
from tests.test_tokenizer import random_strings

FAST = FastTokenizer()
# Every code point, lone surrogates too.
TEXTS = st.text(st.characters(), max_size=40)
SPECIAL_CASES = [
    *("<|endoftext|", "'s", " 'll", "'S"),
    *("\r\n", " \n ", "\t\t", "  ", "\u00a0", "\u200b"),
    *("1234567", "e\u0301", "\ufeff", "\ud800", "\ude00\ud83d"),
]
PIECES = st.sampled_from([*SPECIAL_TOKENS, *SPECIAL_CASES])
DOCUMENT = st.builds("".join, st.lists(TEXTS | PIECES | st.text(" \nab1.", max_size=8), max_size=6))
SURROGATES = [
    *("", "\ud800", "", "a\udfffb <|endoftext|>"),
    *("\ude00\ud83d", "\ud83d\ude00", "\ufeff\ud800", ""),
]
LONG_TEXTS = [
    *("word " * 600_000, "x" * 100_000, " " * 100_000),
    *("é漢 🙂\n\n" * 200_000, "1" * 50_000, "<|endoftext|>" * 50_000),
]


def has_ids_of_tiktoken(texts: list[str]) -> bool:
    lengths, ids = FAST.encode(texts)
    assert ids.dtype == np.uint16
    expected = [load_tokenizer().encode(text) for text in texts]
    return lengths.tolist() == [len(part) for part in expected] and ids.tolist() == [
        token for part in expected for token in part
    ]


def swapped_ranks(path: Path, one: bytes, other: bytes) -> Path:
    """Our table of ranks, with the ids of two pieces exchanged."""
    one, other = base64.b64encode(one), base64.b64encode(other)
    swap = {one: other, other: one}
    lines = [line.split() for line in RANKS.read_bytes().splitlines()]
    path.write_bytes(b"".join(b"%s %s\n" % (swap.get(piece, piece), rank) for piece, rank in lines))
    return path


def write_texts(folder: Path, texts: list[str]) -> Recipe:
    """A source of these documents."""
    path = write_jsonl(folder / "texts.jsonl", [{"text": text} for text in texts])
    return Recipe([str(path)])


@settings(max_examples=500, deadline=None)
@given(st.lists(DOCUMENT, min_size=1, max_size=5))
def test_any_texts_get_the_ids_of_tiktoken(texts: list[str]):
    assert has_ids_of_tiktoken(texts)


def test_ten_thousand_strings_of_every_kind_get_the_ids_of_tiktoken():
    assert has_ids_of_tiktoken(random_strings())
    assert has_ids_of_tiktoken(SURROGATES)


@pytest.mark.parametrize("text", LONG_TEXTS, ids=[repr(text[:5]) for text in LONG_TEXTS])
def test_very_long_documents_get_the_ids_of_tiktoken(text: str):
    assert has_ids_of_tiktoken(["before", text, "after"])


def test_shards_are_the_same_bytes_with_both_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    texts = [text for text in random_strings(2_000) if text.strip()]
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    recipe = Recipe([str(path)], val_every=7, shard_tokens=3_000)
    prepare(recipe, tmp_path / "plain", workers=1)
    # Threads that share one gigatoken, and replace it now and then.
    monkeypatch.setattr("data_tools.encoders.BATCH_CHARACTERS", 500)
    monkeypatch.setattr("data_tools.fast_tokenizer.RELOAD_CHARACTERS", 20_000)
    prepare(recipe, tmp_path / "fast", workers=4, fast_tokenizer=FastTokenizer())
    assert "tiktoken encodes from" not in capsys.readouterr().out
    assert len(contents(tmp_path / "plain")) > 20
    assert contents(tmp_path / "fast") == contents(tmp_path / "plain")


def test_wrong_ids_are_found_in_the_first_documents_and_change_no_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    recipe = write_texts(tmp_path, ["nothing unusual"] * 7 + ["then water", "and more water"] * 30)
    wrong = FastTokenizer(swapped_ranks(tmp_path / "ranks", b" water", b" light"))
    prepare(recipe, tmp_path / "plain", workers=1)
    capsys.readouterr()
    prepare(recipe, tmp_path / "wrong", workers=1, fast_tokenizer=wrong)
    lines = [line for line in capsys.readouterr().out.splitlines() if "tiktoken" in line]
    assert lines == [
        "warning: gigatoken and tiktoken differ in document 7, which begins 'then water': "
        "tiktoken encodes from document 0 on"
    ]
    assert contents(tmp_path / "wrong") == contents(tmp_path / "plain")


def test_samples_are_compared_until_the_last_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    # Batches of 20 and of 30 documents; 49, 99 and 149 are compared.
    monkeypatch.setattr("data_tools.encoders.COMPARED_EVERY", 50)
    monkeypatch.setattr("data_tools.encoders.BATCH_CHARACTERS", 300)
    texts = ["nothing unusual"] * 100 + ["then water"] * 120
    wrong = FastTokenizer(swapped_ranks(tmp_path / "ranks", b" water", b" light"))
    prepare(write_texts(tmp_path, texts), tmp_path / "out", workers=2, fast_tokenizer=wrong)
    output = capsys.readouterr().out
    assert (
        "differ in document 149, which begins 'then water': tiktoken encodes from document 130 on; "
        "only samples of the 130 documents before it were compared"
    ) in output
    assert "--no-fast" in output
    encode = load_tokenizer().encode
    (shard,) = read_manifest(tmp_path / "out")["splits"]["train"]["shards"]
    found = np.load(tmp_path / "out" / shard["file"])
    train = [text for n, text in enumerate(texts) if n % 100]
    expected = [token for text in train for token in (END_OF_TEXT, *encode(text))]
    assert len(found) == len(expected) and found[-200:].tolist() == expected[-200:]
    # Documents between two samples may be wrong, as the line says.
    assert found.tolist() != expected


def test_only_the_given_documents_are_compared():
    numbered = [(10, "one"), (11, ""), (12, "two words")]
    lengths, ids = FAST.encode([text for _, text in numbered])
    expect_equal(numbered, lengths, ids, {10, 11, 12})
    ids[-1] += 1
    expect_equal(numbered, lengths, ids, {10, 11})
    with pytest.raises(Unusable, match="document 12"):
        expect_equal(numbered, lengths, ids, {12})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "raise ImportError('no such thing')",
            "gigatoken is not installed (`pip install gigatoken`",
        ),
        ("import no_such_package", "no_such_package is not installed (`pip install gigatoken`"),
        ("class Tokenizer: pass", "warning: gigatoken failed (AttributeError"),
        ("raise SystemExit('exits on import')", "warning: gigatoken failed (SystemExit"),
    ],
)
def test_a_failing_gigatoken_is_reported_in_one_line_and_changes_no_id(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    module: str,
    message: str,
):
    (tmp_path / "gigatoken.py").write_text(module)
    monkeypatch.delitem(sys.modules, "gigatoken", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["some light", "more water"] * 20
    (encoded,) = encode_all(
        make_batches(enumerate(texts)), workers=1, fast_tokenizer=FastTokenizer()
    )
    encode = load_tokenizer().encode
    expected = [token for text in texts for token in (END_OF_TEXT, *encode(text))]
    assert encoded.tokens.tolist() == expected
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith(message) and not captured.err


def test_ctrl_c_is_not_a_failure_of_gigatoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gigatoken.py").write_text("raise KeyboardInterrupt")
    monkeypatch.delitem(sys.modules, "gigatoken", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        FastTokenizer().load()


def test_the_command_uses_gigatoken_unless_told_otherwise(tmp_path: Path):
    (tmp_path / "gigatoken.py").write_text("raise ImportError")
    recipe = write_texts(tmp_path, ["some light", "more water"])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    for option, is_used in (([], True), (["--no-fast"], False)):
        out = tmp_path / f"out{is_used}"
        arguments = ["--source", *recipe.sources, "--out", str(out), "--workers", "1", *option]
        done = subprocess.run(
            [sys.executable, "-m", "data_tools.fineweb", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert ("gigatoken is not installed" in done.stdout) == is_used
