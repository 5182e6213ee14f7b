"""JSON of any layout gives the same rows, in little memory, and a bad row costs no other."""

import json
import tracemalloc
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.sources import BadRow, documents, rows

# The texts make values long enough to be read in several parts.
TEXTS = [f"{n} " + 'é "quoted" \\ [{,}] ' * 300 * n for n in range(20)]
ROWS = [{"text": text, "tags": [len(text), -1.5e3]} for text in TEXTS]


def pretty(indent: int) -> str:
    return "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in ROWS)


LAYOUTS = {
    "list.json": json.dumps(ROWS),
    "pretty_list.json": json.dumps(ROWS, indent=4, ensure_ascii=False),
    "list.jsonl": json.dumps(ROWS),
    "pretty_list.jsonl": json.dumps(ROWS, indent=1),
    "a_row_a_line.json": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "pretty_objects.jsonl": pretty(2),
    "pretty_objects.json": "\ufeff" + pretty(0),
    "data.json": json.dumps({"version": "1", "data": ROWS, "end": [1]}),
    "pretty_data.json": json.dumps({"version": "1", "data": ROWS, "end": [1]}, indent=2),
    "other_name.json": json.dumps({"about": {"a": [1]}, "articles": ROWS}, indent=2),
    "data.jsonl": json.dumps({"rows": ROWS}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str):
    (tmp_path / name).write_text(LAYOUTS[name])
    assert list(documents(str(tmp_path / name))) == TEXTS
    # Without a column that is asked for, an object may be a row of its own.
    if not name.startswith(("data", "pretty_data", "other")):
        assert list(rows(str(tmp_path / name))) == ROWS


def test_an_object_is_a_row_where_it_has_the_field(tmp_path: Path):
    path = tmp_path / "one.json"
    row = {"text": "a text", "data": [{"text": "no row"}]}
    for indent in (None, 1):
        path.write_text(json.dumps({"messages": [{"role": "user"}]}, indent=indent))
        found = list(rows(str(path), columns=("messages", "prompt")))
        assert found == [{"messages": [{"role": "user"}]}]
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert list(documents(str(path))) == ["a text"] * 2


@pytest.mark.parametrize("elements", [[1, "two"], [{"text": "no row"}]])
def test_a_list_beside_the_field_that_is_asked_for_holds_no_rows(tmp_path: Path, elements: list):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"items": elements, "text": "a text"}))
    assert list(documents(str(path))) == ["a text"]
    row = json.dumps({"text": "a text", "items": elements}, indent=1)
    path.write_text(row + row)
    assert list(documents(str(path))) == ["a text"] * 2


def test_a_list_before_the_field_that_is_asked_for_is_never_taken_for_it(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"items": [1, "two"], "text": "a text"}, indent=1))
    assert list(documents(str(path))) == ["a text"]
    path.write_text(json.dumps({"items": [{"text": "no row"}], "text": "a text"}, indent=1))
    with pytest.raises(InputError, match=r"the list items before text: .*one row a line"):
        list(documents(str(path)))


def test_an_object_with_several_lists_is_named(tmp_path: Path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ROWS[:1], "test": ROWS[:1]}))
    with pytest.raises(InputError, match=r"splits\.json: an object with the lists train, test"):
        list(documents(str(path)))


def test_a_byte_that_is_not_utf8_makes_one_row_bad(tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps([{"text": "a"}, {"text": "Q"}, {"text": "c"}], indent=1).encode())
    path.write_bytes(path.read_bytes().replace(b"Q", b"\xff"))
    assert list(documents(str(path))) == ["a", BadRow("not UTF-8", f"{path} row 2"), "c"]


def test_a_file_in_utf16_is_named(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.txt", "c.csv")]
    for path in paths:
        path.write_text("text\n1\n", encoding="utf-16")
    bad = [BadRow("UTF-16, not UTF-8", str(path)) for path in paths]
    assert list(documents(str(tmp_path))) == bad


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a\n',
        '{"text": "a",\n',
        "{\n",
        "nonsense\n",
        '{"text": "a"},\n',
        '{"text": "a"} x\n',
    ],
)
def test_a_broken_first_line_is_one_bad_row(tmp_path: Path, content: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(content + '{"text": "b"}\n{"text": "c"}\n')
    assert list(documents(str(path))) == [BadRow("broken JSON", f"{path}:1"), "b", "c"]


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"te', '[{"text": "a"} {"text": "b"}]'])
def test_a_list_that_breaks_is_refused(tmp_path: Path, content: str):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(InputError, match=r"rows\.json: .* to its end \(after row 1: .*again"):
        list(documents(str(tmp_path / "rows.json")))


def test_a_long_list_takes_little_memory(tmp_path: Path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"data": [{"text": "word " * 2_000}] * 1_000}, indent=1))
    tracemalloc.start()
    assert sum(1 for _ in documents(str(path))) == 1_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10
