"""The offline data: sources are only read, always the same; no function is in both splits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.docstrings import imported_documents, parsed_documents
from data_tools.python_docs import (
    DOCUMENTS,
    QUESTIONS,
    first_sentence,
    questions,
    write_documents,
    write_questions,
)
from minigpt_jax.errors import InputError
from minigpt_jax.sources import split_rows
from minigpt_jax.token_stream import MANIFEST, open_stream
from minigpt_jax.tokenizer import CHAT_VOCAB, END, END_OF_TEXT, TEXT_VOCAB, load_tokenizer
from tests.data_tools.preparations import contents

ROOT = Path(__file__).parents[2]
TOKENIZER = load_tokenizer()
CONTEXT = 128

SOURCE = '''"""A tool.

    With an indent.
    """
open("was_run", "w")
def use(it, *, well=1):
    """Use it."""
def silent(): pass
class Box:
    """A box."""
    async def open(self):
        """Look inside."""
'''


def test_sources_are_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tool.py"
    path.write_text(SOURCE)
    assert parsed_documents("pack.tool", path) == [
        ("Module pack.tool", "A tool.\n\nWith an indent."),
        ("pack.tool.use(it, well)", "Use it."),
        ("Class pack.tool.Box", "A box."),
        ("Box.open(self)", "Look inside."),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["tool.py"]


@pytest.mark.parametrize("content", [b"def (:", b"\x00", b"\xff\xfe", b"# coding: klingon\n"])
def test_a_source_that_cannot_be_parsed_is_left_out(tmp_path: Path, content: bytes):
    path = tmp_path / "tool.py"
    path.write_bytes(content)
    assert parsed_documents("pack.tool", path) == []


def test_modules_written_in_c_are_imported():
    documents = dict(imported_documents("math"))
    assert documents["math.cos()"] == "Return the cosine of x (measured in radians)."
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
def test_first_sentence(docstring: str, sentence: str | None):
    assert first_sentence(docstring) == sentence


def test_a_function_is_in_one_split_and_its_answer_is_short():
    pairs = questions(TOKENIZER)
    train, val = ({pair["completion"] for pair in pairs[split]} for split in ("train", "val"))
    assert not train & val
    assert len(train) > 300 and 20 < len(val) < len(train) / 5
    assert all(len(TOKENIZER.encode(text)) < 50 and text.endswith(".") for text in train | val)
    answers = {pair["prompt"]: pair["completion"] for pair in pairs["train"] + pairs["val"]}
    join = answers["What does os.path.join do?"]
    assert join.startswith("Join two or more pathname components")
    assert answers["Explain len."] == "Return the number of items in a container."
    # The first questions are about different functions.
    assert len({pair["completion"] for pair in pairs["train"][:50]}) == 50


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[Path]:
    """Two folders, written by two processes with different hashes of strings."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    processes = []
    for seed, folder in enumerate(folders, 1):
        arguments = ["--out", folder / "text", "--megabytes", 0.2]
        arguments += ["--chat-out", folder / "chat", "--context", CONTEXT]
        process = subprocess.Popen(
            [sys.executable, "-m", "data_tools.python_docs", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
    for process in processes:
        _, stderr = process.communicate(timeout=180)
        assert process.returncode == 0, stderr
    return folders


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_the_command_always_writes_the_same(written: list[Path], kind: str):
    first, second = (contents(folder / kind) for folder in written)
    assert first == second and MANIFEST in first


def test_the_text_is_documents_without_repetition(written: list[Path]):
    folder = written[0] / "text"
    stream, _ = (
        open_stream(folder, split, tokenizer=TOKENIZER.hash, vocab_size=TEXT_VOCAB, context=CONTEXT)
        for split in ("train", "val")
    )
    documents = [json.loads(line)["text"] for line in (folder / DOCUMENTS).open()]
    texts = [document.partition("\n\n")[2] for document in documents]
    assert len(texts) > 100 and len(texts) == len(set(texts))
    train = [document for number, document in enumerate(documents) if number % 20]
    expected = [token for document in train for token in (END_OF_TEXT, *TOKENIZER.encode(document))]
    assert stream.read(0, stream.length).tolist() == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_conversations_are_the_questions(written: list[Path], split: str):
    folder = written[0] / "chat"
    pairs = json.loads((folder / QUESTIONS).read_text())[split]
    chat = open_stream(
        folder, split, tokenizer=TOKENIZER.hash, vocab_size=CHAT_VOCAB, context=CONTEXT
    )
    tokens = chat.read(0, chat.length)
    mask = chat.read_mask(0, chat.length)
    assert np.count_nonzero((tokens == END) & (mask == 1)) == len(pairs)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_evaluation_can_read_the_questions(written: list[Path], split: str):
    path = written[0] / "chat" / QUESTIONS
    rows = split_rows(str(path), split=split, columns=("prompt", "completion"))
    assert [row for _, row in rows] == json.loads(path.read_text())[split]


def test_a_finished_folder_is_not_changed_and_other_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    chat = tmp_path / "chat"
    write_questions(chat, CONTEXT)
    before = {path.name: path.stat().st_mtime_ns for path in chat.iterdir()}
    capsys.readouterr()
    write_questions(chat, CONTEXT)
    assert "done before" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in chat.iterdir()} == before
    manifest = chat / MANIFEST
    manifest.write_text(manifest.read_text().replace("questions about", "something about"))
    with pytest.raises(InputError, match="holds prepared data"):
        write_questions(chat, CONTEXT)


def test_files_of_the_user_and_of_other_tools_are_kept(tmp_path: Path):
    split = {"shards": [], "document": -1, "offset": 0}
    progress = {"source": "texts.jsonl", "splits": {"train": split, "val": split}}
    for name, content in [
        (DOCUMENTS, '{"text": "mine"}\n'),
        ("manifest.json", '{"format": 1, "source": "texts.jsonl"}'),
        ("progress.json", json.dumps(progress)),
        ("train_000000.npy", "tokens"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        before = contents(folder)
        with pytest.raises(InputError, match="another"):
            write_documents(folder, 0.001)
        assert contents(folder) == before
    chat = tmp_path / "chat"
    chat.mkdir()
    (chat / QUESTIONS).write_text("[]")
    with pytest.raises(InputError, match=r"questions\.json: exists and differs"):
        write_questions(chat, CONTEXT)
    assert contents(chat) == {QUESTIONS: b"[]"}


def test_files_of_a_killed_run_are_accepted(tmp_path: Path):
    path = write_documents(tmp_path, 0.001)
    before = path.read_bytes()
    assert write_documents(tmp_path, 0.001).read_bytes() == before
    with pytest.raises(InputError, match=r"documents\.jsonl: exists and differs"):
        write_documents(tmp_path, 0.01)
    assert path.read_bytes() == before
    chat = tmp_path / "chat"
    chat.mkdir()
    (chat / QUESTIONS).write_text(json.dumps(questions(TOKENIZER)))
    write_questions(chat, CONTEXT)
    assert (chat / MANIFEST).exists()


def test_the_command_asks_for_a_folder():
    command = [sys.executable, "-m", "data_tools.python_docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: nothing to do")
