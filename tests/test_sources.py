"""Every format gives the same rows, every broken row a reason, every unreadable source one clear error."""

import codecs
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.sources import (
    BadRow,
    documents,
    hub_rows,
    identity,
    local_files,
    rows,
    text_bytes,
)

TEXTS = [f"document {n}: café 漢字 \0 <|endoftext|>\r\n" + "long " * n for n in range(700)]
ROWS = [{"text": text, "id": n} for n, text in enumerate(TEXTS)]


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


@pytest.mark.parametrize(
    "file", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz", "rows.parquet"]
)
def test_every_format_gives_the_same_rows(folder: Path, file: str):
    assert list(rows(str(folder / file))) == ROWS
    assert list(documents(str(folder / file))) == TEXTS


def test_a_folder_is_read_by_name_and_hidden_or_foreign_files_are_not(tmp_path: Path):
    for name in ["b.txt", "a.txt", "sub/c.txt", ".hidden/d.txt", "e.md", "aa.jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert list(documents(str(tmp_path))) == ["a.txt", "aa.jsonl", "b.txt", "sub/c.txt"]


def test_a_text_file_is_one_document(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "one\r\n\r\ntwo é".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "c.txt").write_bytes("café".encode("latin-1"))
    assert list(documents(str(tmp_path))) == [
        "one\n\ntwo é",
        "packed",
        BadRow("not UTF-8", str(tmp_path / "c.txt")),
    ]


def test_broken_lines_are_skipped_by_reason(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = [
        codecs.BOM_UTF8 + b'{"text": "first"}\r',
        b"",
        b'{"text": "cut',
        b"[1]",
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": " \\n"}',
        b"{}",
    ]
    lines += [b'{"text": "\xff\xfe"}', b"[" * 100_000, b"\0", b'{"text": "last"}']
    path.write_bytes(b"\n".join(lines))
    found = [row.reason if isinstance(row, BadRow) else row for row in documents(str(path))]
    missing = "field missing or null"
    assert found == [
        "first",
        "broken JSON",
        "not an object",
        missing,
        "not a string",
        "blank",
        missing,
        *["broken JSON"] * 3,
        "last",
    ]
    assert BadRow("broken JSON", f"{path}:3") in documents(str(path))


def test_a_lone_surrogate_survives(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    assert list(documents(str(tmp_path / "rows.jsonl"))) == ["a \ud800 b"]


def test_the_hub_reader_gives_the_same_rows_from_the_same_files(folder: Path, tmp_path: Path):
    for kind in ["parquet", "jsonl"]:
        home = tmp_path / kind
        home.mkdir()
        (home / f"train.{kind}").write_bytes((folder / f"rows.{kind}").read_bytes())
        assert list(hub_rows(str(home), name=None, split="train", columns=("text",))) == [
            {"text": text} for text in TEXTS
        ]
        assert list(hub_rows(str(home), name=None, split="train", columns=None)) == ROWS
    with pytest.raises(InputError, match="no column body, only text, id"):
        list(hub_rows(str(tmp_path / "parquet"), name=None, split="train", columns=("body",)))


def test_the_hub_reader_takes_the_only_split_whatever_its_name_but_never_guesses(tmp_path: Path):
    for name, files in {"one": ["test"], "two": ["test", "validation"]}.items():
        (tmp_path / name).mkdir()
        for split in files:
            (tmp_path / name / f"{split}.jsonl").write_text('{"text": "here"}\n')
    assert list(hub_rows(str(tmp_path / "one"), name=None, split="train", columns=None)) == [
        {"text": "here"}
    ]
    with pytest.raises(InputError, match=r"no split 'train', only .*test"):
        list(hub_rows(str(tmp_path / "two"), name=None, split="train", columns=None))


def test_an_unreachable_hub_names_what_would_do_instead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"nobody/nothing: neither a file or folder here nor a data set.*\.parquet, \.jsonl.*HF_TOKEN",
    ):
        list(rows("nobody/nothing"))


def test_sources_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path):
    whole = (folder / "rows.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "hole.parquet").write_bytes(
        whole[:4] + os.urandom(len(whole) // 2) + whole[4 + len(whole) // 2 :]
    )
    (tmp_path / "cut.jsonl.gz").write_bytes((folder / "rows.jsonl.gz").read_bytes()[:-100])
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"te')
    for name in ["cut.parquet", "hole.parquet", "cut.jsonl.gz", "cut.json"]:
        with pytest.raises(InputError, match=f"{name}: cannot be read to its end"):
            list(rows(str(tmp_path / name)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.md").write_text("x")
    for name, complaint in {
        "empty": "no file in this folder ends in",
        "readme.md": "unknown kind of file",
        "gone.jsonl": "no such file",
    }.items():
        with pytest.raises(InputError, match=complaint):
            local_files(str(tmp_path / name))
    with pytest.raises(InputError, match="no column body, only text, id"):
        list(documents(str(folder / "rows.parquet"), column="body"))


def test_identity_changes_with_the_files_and_not_with_where_they_are(tmp_path: Path):
    for place in ["here", "there"]:
        (tmp_path / place / "texts").mkdir(parents=True)
        (tmp_path / place / "texts" / "a.txt").write_text("same")
    here, there = str(tmp_path / "here" / "texts"), str(tmp_path / "there" / "texts")
    assert identity(here) == identity(there)
    (tmp_path / "there" / "texts" / "b.txt").write_text("more")
    assert identity(here) != identity(there)


def test_text_bytes_is_near_the_truth_or_unknown(folder: Path):
    truth = sum(len(text.encode()) for text in TEXTS)
    for file in ["rows.parquet", "rows.jsonl"]:
        assert text_bytes(str(folder / file)) == pytest.approx(truth, rel=0.05)
    assert text_bytes(str(folder / "rows.jsonl.gz")) is None
