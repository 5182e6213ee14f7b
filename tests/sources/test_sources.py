"""Every format gives the same rows, every bad row a reason, every bad source one clear error."""

import codecs
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.sources import (
    BadRow,
    documents,
    find,
    hub,
    identity,
    rows,
    split_rows,
    text_bytes,
)
from minigpt_jax.sources.row import Wanted

TEXTS = [f"document {n}: café 漢字 \0 <|endoftext|>\r\n" + "long " * n for n in range(700)]
ROWS = [{"text": text, "id": n} for n, text in enumerate(TEXTS)]
MISSING = "field missing or null"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in every format, a file each, except the plain texts."""
    root = tmp_path_factory.mktemp("formats")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (root / "rows.jsonl").write_bytes(lines)
    (root / "rows.json").write_text(json.dumps(ROWS, indent=1))
    (root / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    (root / "rows.json.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(ROWS), root / "rows.parquet", row_group_size=100)
    return root


@pytest.fixture
def hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request leaves this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_import_loads_no_reader_of_any_format():
    heavy = "{'pyarrow', 'datasets', 'pandas', 'jax'}"
    code = f"import sys, minigpt_jax.sources; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


# ---- rows and documents


@pytest.mark.parametrize(
    "file", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz", "rows.parquet"]
)
def test_every_format_gives_the_same_rows(folder: Path, file: str):
    assert list(rows(str(folder / file))) == ROWS
    assert list(documents(str(folder / file))) == TEXTS


def test_a_folder_is_read_in_order_of_names_without_hidden_and_unknown_files(tmp_path: Path):
    for name in ["b.txt", "a.txt", "sub/c.txt", ".hidden/d.txt", "e.pdf", "aa.jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert list(documents(str(tmp_path))) == ["a.txt", "aa.jsonl", "b.txt", "sub/c.txt"]


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "one\r\n\r\ntwo é".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "c.txt").write_bytes("café".encode("latin-1"))
    found = list(documents(str(tmp_path)))
    assert found == ["one\n\ntwo é", "packed", BadRow("not UTF-8", str(tmp_path / "c.txt"))]


LINES = {
    codecs.BOM_UTF8 + b'{"text": "first"}\r': "first",
    b'{"text": "cut': "broken JSON",
    b"[1]": "not an object",
    b'{"text": null}': MISSING,
    b'{"text": 5}': "not a string",
    b'{"text": " \\n"}': "blank",
    b"{}": MISSING,
    b'{"text": "\xff\xfe"}': "broken JSON",
    b"[" * 100_000: "broken JSON",
    b"\0": "broken JSON",
    b'{"text": "last"}': "last",
}


def test_bad_lines_are_skipped_by_reason(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    first, *others = LINES
    path.write_bytes(b"\n".join([first, b"", *others]))
    found = [row.reason if isinstance(row, BadRow) else row for row in documents(str(path))]
    assert found == list(LINES.values())
    assert BadRow("broken JSON", f"{path}:3") in documents(str(path))


def test_a_lone_surrogate_survives(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    assert list(documents(str(tmp_path / "rows.jsonl"))) == ["a \ud800 b"]


def test_sources_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path):
    whole = (folder / "rows.parquet").read_bytes()
    half = len(whole) // 2
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "hole.parquet").write_bytes(whole[:4] + os.urandom(half) + whole[4 + half :])
    (tmp_path / "cut.jsonl.gz").write_bytes((folder / "rows.jsonl.gz").read_bytes()[:-100])
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"te')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ["cut.parquet", "hole.parquet", "cut.jsonl.gz", "cut.json", "deep.json"]:
        with pytest.raises(InputError, match=f"{name}: cannot be read to its end"):
            list(rows(str(tmp_path / name)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.pdf").write_text("x")
    for name, complaint in {
        "empty": "no file in this folder ends in",
        "readme.pdf": "unknown kind of file",
        "gone.jsonl": "no such file",
    }.items():
        with pytest.raises(InputError, match=complaint):
            find(str(tmp_path / name))
    with pytest.raises(InputError, match="no column body, only text, id"):
        list(documents(str(folder / "rows.parquet"), column="body"))


def test_identity_changes_with_the_files_and_not_with_their_place(tmp_path: Path):
    for place in ["here", "there"]:
        (tmp_path / place / "texts").mkdir(parents=True)
        (tmp_path / place / "texts" / "a.txt").write_text("same")
    here = str(tmp_path / "here" / "texts")
    there = str(tmp_path / "there" / "texts")
    assert identity(here) == identity(there)
    (tmp_path / "there" / "texts" / "b.txt").write_text("more")
    assert identity(here) != identity(there)


def test_text_bytes_is_near_the_truth_or_unknown(folder: Path):
    truth = sum(len(text.encode()) for text in TEXTS)
    for file in ["rows.parquet", "rows.jsonl"]:
        assert text_bytes(str(folder / file)) == pytest.approx(truth, rel=0.05)
    assert text_bytes(str(folder / "rows.jsonl.gz")) is None


# ---- hub data sets


def from_hub(folder: Path, columns: tuple[str, ...] | None = None) -> list:
    return [row for _, row in hub.streamed_rows(str(folder), Wanted(columns))]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_hub_reader_gives_the_same_rows_from_the_same_files(
    folder: Path, tmp_path: Path, kind: str
):
    (tmp_path / f"train.{kind}").write_bytes((folder / f"rows.{kind}").read_bytes())
    texts = [{"text": text} for text in TEXTS]
    assert from_hub(tmp_path, ("text",)) == texts
    assert from_hub(tmp_path) == ROWS
    with pytest.raises(InputError, match="no column body, only text, id"):
        from_hub(tmp_path, ("body",))


def test_the_hub_reader_takes_the_only_split_but_never_one_of_several(tmp_path: Path):
    for name, files in {"one": ["test"], "two": ["test", "validation"]}.items():
        (tmp_path / name).mkdir()
        for split in files:
            (tmp_path / name / f"{split}.jsonl").write_text('{"text": "here"}\n')
    assert from_hub(tmp_path / "one") == [{"text": "here"}]
    with pytest.raises(InputError, match=r"no split 'train', only .*test"):
        from_hub(tmp_path / "two")


@pytest.mark.parametrize("read", [rows, lambda source: split_rows(source, split="val", columns=())])
def test_without_the_hub_the_message_asks_for_a_local_copy(hub_offline, read):
    with pytest.raises(
        InputError,
        match=r"nobody/nothing: no such file or folder, and could not be read from the Hub \(.*"
        r"name a local copy.*\.parquet, \.jsonl.*HF_TOKEN",
    ) as refused:
        list(read("nobody/nothing"))
    assert "\n" not in str(refused.value)


# ---- rows of one split

QUESTIONS = [{"a": "x", "b": [1, 2]}, {"a": "y", "b": []}]


def questions(source: Path | str) -> list[dict]:
    return [row for _, row in split_rows(str(source), split="val", columns=("a", "b"))]


def json_lines(found: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n\n" for row in found)


def test_questions_are_read_from_every_format(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + json_lines(QUESTIONS))
    (tmp_path / "b.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "c.json").write_text(json.dumps({"train": [], "val": QUESTIONS}))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(json_lines(QUESTIONS).encode()))
    pq.write_table(pa.Table.from_pylist(QUESTIONS), tmp_path / "e.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5 and all(questions(file) == QUESTIONS for file in files)
    (tmp_path / "notes.txt").write_text("not a question")
    assert questions(tmp_path) == QUESTIONS * 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": 1, "b": 2}\n{"a": ', ["a.jsonl:2", "broken JSON"]),
        ("a.jsonl", b"[1]\n", ["a.jsonl:1", "list", "a, b"]),
        ("a.jsonl", b'{"a": 1, "c": 2}\n', ["a.jsonl:1", "no b", "a, c"]),
        ("a.jsonl", b"\xff\xfe\n", ["a.jsonl", "UTF-16"]),
        ("a.jsonl", b"\xff\n", ["a.jsonl:1", "broken JSON"]),
        ("a.json", b'[{"a": 1, "b": 2}, {"a": 1}]', ["a.json row 2", "no b"]),
        ("a.json", b'{"train": []}', ["a.json", "'val'"]),
        ("a.json", b'{"val": 5}', ["a.json", "'val'"]),
        ("a.json", b"5", ["a.json", "expected a list of rows"]),
        ("a.json", b"[", ["a.json", "cannot be read"]),
        ("a.parquet", b"PAR1 no more", ["a.parquet", "cannot be read"]),
        ("a.pdf", b"a,b", ["a.pdf", "unknown kind of file"]),
    ],
)
def test_a_question_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes, words: list[str]
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        questions(tmp_path / name)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


def test_of_a_folder_with_splits_one_is_read(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(json_lines(QUESTIONS))
    (tmp_path / "val.json").write_text(json.dumps({"validation": QUESTIONS}))
    (tmp_path / "validation-0.jsonl").write_text(json_lines(QUESTIONS[:1]))
    assert questions(tmp_path) == QUESTIONS + QUESTIONS[:1]


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing", "one/two/three", "plain"])
def test_a_source_that_does_not_exist_is_refused_without_asking_the_hub(source: str):
    with pytest.raises(InputError, match="no such file or folder"):
        questions(source)


def test_a_folder_without_questions_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("not a question")
    with pytest.raises(InputError, match="no file in this folder"):
        questions(tmp_path)
