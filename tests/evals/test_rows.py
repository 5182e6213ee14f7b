"""Questions come from any of the formats they are handed around in, and a bad one is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.evals.rows import read

ROWS = [{"a": "x", "b": [1, 2]}, {"a": "y", "b": []}]


def write(folder: Path) -> list[Path]:
    lines, listed, split, table = (
        folder / name for name in ("a.jsonl", "b.json", "c.json", "d.parquet")
    )
    lines.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS))
    listed.write_text(json.dumps(ROWS))
    split.write_text(json.dumps({"train": [], "val": ROWS}))
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    return [lines, listed, split, table]


def found(source: Path | str) -> list[dict]:
    return [row for _, row in read(str(source), split="val", columns=("a", "b"))]


def test_every_format_gives_the_same_rows(tmp_path):
    files = write(tmp_path)
    assert all(found(file) == ROWS for file in files)
    assert found(tmp_path) == ROWS * 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"a": 1, "b": 2}\n{"a": ', ["a.jsonl:2", "broken JSON"]),
        ("a.jsonl", b"[1]\n", ["a.jsonl:1", "list", "a, b"]),
        ("a.jsonl", b'{"a": 1, "c": 2}\n', ["a.jsonl:1", "no b", "a, c"]),
        ("a.jsonl", b"\xff\xfe\n", ["a.jsonl", "cannot be read"]),
        ("a.json", b'{"train": []}', ["a.json", "'val'"]),
        ("a.json", b"[", ["a.json", "cannot be read"]),
        ("a.parquet", b"PAR1 no more", ["a.parquet", "cannot be read"]),
        ("a.csv", b"a,b", ["a.csv", "unknown kind of file"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        found(tmp_path / name)
    assert "\n" not in str(refused.value) and all(word in str(refused.value) for word in words)


def test_of_a_folder_with_splits_one_is_read(tmp_path):
    for name, rows in (
        ("train.jsonl", ROWS),
        ("validation-0.jsonl", ROWS[:1]),
        ("val.json", {"validation": ROWS}),
    ):
        (tmp_path / name).write_text(
            json.dumps(rows)
            if name.endswith("json")
            else "".join(json.dumps(row) + "\n" for row in rows)
        )
    assert found(tmp_path) == ROWS + ROWS[:1]


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing", "one/two/three", "plain"])
def test_a_source_that_is_nowhere_is_refused(source):
    with pytest.raises(InputError, match="no such file"):
        found(source)


def test_a_folder_without_questions_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file in this folder"):
        found(tmp_path)


def test_without_the_hub_a_local_file_is_asked_for(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as refused:
        found("nobody-here/no-such-set")
    assert "\n" not in str(refused.value) and "local copy of its val split" in str(refused.value)
