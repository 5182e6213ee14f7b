"""gigatoken is faster and nothing else: the same ids for any text, the same shards, and no harm done where it errs."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.fast_tokenizer import FastTokenizer, Unusable, expect_equal
from data_tools.fineweb import prepare
from minigpt_jax.token_stream import read_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, RANKS, SPECIAL_TOKENS, load_tokenizer
from tests.test_tokenizer import random_strings

FAST = FastTokenizer()
TEXTS = st.text(st.characters(), max_size=40)  # every code point, lone surrogates too
ODDITIES = [
    "<|endoftext|",
    "'s",
    " 'll",
    "'S",
    "\r\n",
    " \n ",
    "\t\t",
    "  ",
    "1234567",
    "\u00a0",
    "\u200b",
    "e\u0301",
    "\ufeff",
    "\ud800",
    "\ude00\ud83d",
]
PIECES = st.sampled_from([*SPECIAL_TOKENS, *ODDITIES])
DOCUMENTS = st.lists(
    st.builds("".join, st.lists(TEXTS | PIECES | st.text(" \nab1.", max_size=8), max_size=6)),
    min_size=1,
    max_size=5,
)


def plain(texts: list[str]) -> tuple[list[int], list[int]]:
    """Lengths and ids as of tiktoken."""
    ids = [load_tokenizer().encode(text) for text in texts]
    return [len(part) for part in ids], [token for part in ids for token in part]


def same(texts: list[str]) -> bool:
    """Whether gigatoken gives the same."""
    lengths, ids = FAST.encode(texts)
    assert ids.dtype == np.uint16
    return (lengths.tolist(), ids.tolist()) == plain(texts)


def wrong_ranks(path: Path, one: bytes, other: bytes) -> Path:
    """Our table of ranks with two pieces changing places."""
    swap = {
        base64.b64encode(one): base64.b64encode(other),
        base64.b64encode(other): base64.b64encode(one),
    }
    lines = [line.split() for line in RANKS.read_bytes().splitlines()]
    path.write_bytes(b"".join(b"%s %s\n" % (swap.get(piece, piece), rank) for piece, rank in lines))
    return path


def write_texts(folder: Path, texts: list[str]) -> str:
    """A source of these documents."""
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    return str(folder / "texts.jsonl")


def shards(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS)
def test_any_texts_get_the_ids_of_tiktoken(texts: list[str]):
    assert same(texts)


def test_ten_thousand_strings_of_every_kind_get_the_ids_of_tiktoken():
    assert same(random_strings())
    assert same(
        [
            "",
            "\ud800",
            "",
            "a\udfffb <|endoftext|>",
            "\ude00\ud83d",
            "\ud83d\ude00",
            "\ufeff\ud800",
            "",
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        "word " * 600_000,
        "x" * 100_000,
        " " * 100_000,
        "é漢 🙂\n\n" * 200_000,
        "1" * 50_000,
        "<|endoftext|>" * 50_000,
    ],
)
def test_very_long_documents_get_the_ids_of_tiktoken(text: str):
    assert same(["before", text, "after"])


def test_shards_are_the_same_bytes_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(
        "data_tools.fineweb._BATCH_CHARACTERS", 500
    )  # threads that share one, and now and then a new one
    monkeypatch.setattr("data_tools.fast._FRESH_AFTER", 20_000)
    texts = [text for text in random_strings(3_000) if text.strip()]
    source = write_texts(tmp_path, texts)
    for name, fast in {"plain": None, "fast": FastTokenizer()}.items():
        prepare([source], tmp_path / name, val_every=7, shard_tokens=3_000, workers=4, fast=fast)
    assert "tiktoken encodes from" not in capsys.readouterr().out  # gigatoken it was
    assert len(shards(tmp_path / "plain")) > 20 and shards(tmp_path / "fast") == shards(
        tmp_path / "plain"
    )


def test_a_wrong_tokenizer_is_found_out_at_the_first_document_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    source = write_texts(tmp_path, ["nothing unusual"] * 7 + ["then water", "and more water"] * 30)
    wrong = FastTokenizer(wrong_ranks(tmp_path / "ranks", b" water", b" light"))
    prepare([source], tmp_path / "plain", workers=1)
    capsys.readouterr()
    prepare([source], tmp_path / "wrong", workers=1, fast=wrong)
    said = capsys.readouterr().out.splitlines()
    complaint = "warning: gigatoken and tiktoken differ in document 7, which begins 'then water': tiktoken encodes from document 0 on"
    assert [line for line in said if "tiktoken" in line] == [complaint]
    assert shards(tmp_path / "wrong") == shards(tmp_path / "plain")


def test_samples_are_compared_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("data_tools.fineweb._COMPARED_EVERY", 50)
    monkeypatch.setattr("data_tools.fineweb._BATCH_CHARACTERS", 300)
    texts = ["nothing unusual"] * 100 + [
        "then water"
    ] * 120  # batches of 20 and of 30; documents 49, 99 and 149 are samples
    source = write_texts(tmp_path, texts)
    prepare(
        [source],
        tmp_path / "out",
        workers=2,
        fast=FastTokenizer(wrong_ranks(tmp_path / "ranks", b" water", b" light")),
    )
    said = capsys.readouterr().out
    assert (
        "differ in document 149, which begins 'then water': tiktoken encodes from document 130 on; only samples of the 130 before it"
        in said
    )
    assert "--no-fast" in said
    encode = load_tokenizer().encode
    found = np.load(
        tmp_path / "out" / read_manifest(tmp_path / "out")["splits"]["train"]["shards"][0]["file"]
    )
    expected = [
        token for n, text in enumerate(texts) if n % 100 for token in (END_OF_TEXT, *encode(text))
    ]
    assert len(found) == len(expected) and found[-200:].tolist() == expected[-200:]
    assert (
        found.tolist() != expected
    )  # what lay between two samples is as wrong as the line says it may be


def test_a_comparison_looks_at_the_numbered_texts_only():
    numbered = [(10, "one"), (11, ""), (12, "two words")]
    lengths, ids = FAST.encode([text for _, text in numbered])
    expect_equal(numbered, lengths, ids, {10, 11, 12})
    ids[-1] += 1
    expect_equal(numbered, lengths, ids, {10, 11})
    with pytest.raises(Unusable, match="document 12"):
        expect_equal(numbered, lengths, ids, {12})


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            "raise ImportError('no such thing')",
            "gigatoken is not installed (`pip install gigatoken`",
        ),
        ("class Tokenizer: pass", "warning: gigatoken failed (AttributeError"),
        ("raise SystemExit('its own idea of an end')", "warning: gigatoken failed (SystemExit"),
    ],
)
def test_without_a_working_gigatoken_one_line_says_why_and_the_bytes_are_the_same(
    tmp_path: Path, module: str, says: str
):
    source = write_texts(tmp_path, ["some light", "more water"] * 20)
    prepare([source], tmp_path / "plain", workers=1)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "gigatoken.py").write_text(module)
    command = [
        sys.executable,
        "-m",
        "data_tools.fineweb",
        "--source",
        source,
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.startswith(says) for line in done.stdout.splitlines() if "gigatoken" in line] == [
        True
    ] and not done.stderr
    assert shards(tmp_path / "out") == shards(tmp_path / "plain")
    assert (
        "gigatoken"
        not in subprocess.run(
            [*command, "--no-fast"], env=environment, capture_output=True, text=True, timeout=60
        ).stdout
    )
