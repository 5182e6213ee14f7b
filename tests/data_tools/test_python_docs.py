"""The offline corpus: sources read but never run, the same text every time, and questions whose functions are in one split only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.python_docs import (
    DOCUMENTS,
    QUESTIONS,
    first_sentence,
    imported_documents,
    parsed_documents,
    questions,
)
from minigpt_jax.token_stream import MANIFEST, open_stream
from minigpt_jax.tokenizer import CHAT_VOCAB, END, END_OF_TEXT, TEXT_VOCAB, load_tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = load_tokenizer()


def python_docs(*arguments: object, hash_seed: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_tools.python_docs", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_sources_are_read_and_not_run(tmp_path):
    path = tmp_path / "tool.py"
    path.write_text(
        f'''"""A tool.\n\n    With an indent.\n    """\nopen({str(tmp_path / "was_run")!r}, "w")\ndef use(it, *, well=1):\n    """Use it."""\n'''
        '''def silent(): pass\nclass Box:\n    """A box."""\n    async def open(self):\n        """Look inside."""\n'''
    )
    assert parsed_documents("pack.tool", path) == [
        ("Module pack.tool", "A tool.\n\nWith an indent."),
        ("pack.tool.use(it, well)", "Use it."),
        ("Class pack.tool.Box", "A box."),
        ("Box.open(self)", "Look inside."),
    ]
    assert not (tmp_path / "was_run").exists()
    for broken in (b"def (:", b"\x00", b"\xff\xfe", b"# coding: klingon\n"):
        path.write_bytes(broken)
        assert parsed_documents("pack.tool", path) == []


def test_modules_written_in_c_are_asked():
    assert (
        dict(imported_documents("math"))["math.cos()"]
        == "Return the cosine of x (measured in radians)."
    )
    assert imported_documents("no_such_module") == []


@pytest.mark.parametrize(
    "docstring, sentence",
    [
        ("Return the cosine of x.\n\nMore.", "Return the cosine of x."),
        ("copy data from one\nfile to another", "Copy data from one file to another."),
        ("S.join(iterable) -> str\n\nJoin the strings. Then rest.", "Join the strings."),
        ("log(x, [base])\nReturn the logarithm of x.", "Return the logarithm of x."),
        (
            "Remove things, e.g. 'files' or i.e. (all).  Then stop.",
            "Remove things, e.g. 'files' or i.e. (all).",
        ),
        ("partial(func) - new function with\nsome arguments.", None),
        (">>> zip(a, b)", None),
        ("There are three kinds:", None),
        ("Too short.", None),
        ("", None),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_a_function_is_in_one_split_and_its_answer_is_short():
    pairs = questions(TOKENIZER)
    answers = {split: {pair["completion"] for pair in pairs[split]} for split in pairs}
    assert not answers["train"] & answers["val"]
    assert len(answers["train"]) > 300 and 20 < len(answers["val"]) < len(answers["train"]) / 5
    assert all(
        len(TOKENIZER.encode(answer)) < 50 and answer.endswith(".")
        for answer in answers["train"] | answers["val"]
    )
    everything = {pair["prompt"]: pair["completion"] for pair in pairs["train"] + pairs["val"]}
    assert everything["What does os.path.join do?"].startswith(
        "Join two or more pathname components"
    )
    assert everything["Explain len."] == "Return the number of items in a container."
    assert (
        len({pair["completion"] for pair in pairs["train"][:50]}) == 50
    )  # what a demo asks first are different things


def test_the_command_writes_both_folders_and_always_the_same(tmp_path):
    for number in (1, 2):
        arguments = [
            "--out",
            tmp_path / f"text{number}",
            "--megabytes",
            0.2,
            "--chat-out",
            tmp_path / f"chat{number}",
            "--context",
            128,
        ]
        done = python_docs(*arguments, hash_seed=number)
        assert done.returncode == 0, done.stderr
    for kind in ("text", "chat"):
        first, second = (
            {p.name: p.read_bytes() for p in (tmp_path / f"{kind}{number}").iterdir()}
            for number in (1, 2)
        )
        assert first == second and MANIFEST in first
    text = open_stream(
        tmp_path / "text1", "train", tokenizer=TOKENIZER.hash, vocab_size=TEXT_VOCAB, context=128
    )
    open_stream(
        tmp_path / "text1", "val", tokenizer=TOKENIZER.hash, vocab_size=TEXT_VOCAB, context=128
    )
    documents = [
        json.loads(line)["text"]
        for line in (tmp_path / "text1" / DOCUMENTS).read_text().splitlines()
    ]
    said = [document.partition("\n\n")[2] for document in documents]
    assert len(said) > 100 and len(said) == len(set(said))
    expected = [
        token
        for number, document in enumerate(documents)
        if number % 20
        for token in [END_OF_TEXT, *TOKENIZER.encode(document)]
    ]
    assert text.read(0, text.length).tolist() == expected
    pairs = json.loads((tmp_path / "chat1" / QUESTIONS).read_text())
    for split in ("train", "val"):
        chat = open_stream(
            tmp_path / "chat1", split, tokenizer=TOKENIZER.hash, vocab_size=CHAT_VOCAB, context=128
        )
        tokens, mask = chat.read(0, chat.length), chat.read_mask(0, chat.length)
        assert int(((tokens == END) & (mask == 1)).sum()) == len(pairs[split])


def test_the_command_again_does_nothing_and_elsewhere_refuses(tmp_path):
    assert python_docs("--chat-out", tmp_path / "chat").returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chat").iterdir()}
    again = python_docs("--chat-out", tmp_path / "chat")
    assert again.returncode == 0 and "done before" in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chat").iterdir()} == before
    manifest = tmp_path / "chat" / MANIFEST
    manifest.write_text(manifest.read_text().replace("questions about", "something about"))
    refused = python_docs("--chat-out", tmp_path / "chat")
    assert refused.returncode == 2 and "holds prepared data" in refused.stderr
    assert python_docs().returncode == 2
