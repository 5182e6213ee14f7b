"""Parquet and Arrow files: a bad value is one bad row, and other columns are never decoded."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, ipc

from minigpt_jax.errors import InputError
from minigpt_jax.sources import UNREAD, BadRow, documents, rows

TEXTS = [f"text {n}" for n in range(600)]
# No date of Python's has this year.
FAR = 2**62


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def write_arrow(path: Path, table: pa.Table) -> None:
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_stream(path: Path, table: pa.Table) -> None:
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
    "b.arrow": write_stream,
    "a.feather": lambda path, table: feather.write_feather(table, str(path)),
}
every_format = pytest.mark.parametrize("name", WRITERS)


def broken_strings(values: list[bytes]) -> pa.Array:
    """An array of strings whose bytes nobody checked."""
    return pa.array(values, pa.binary()).view(pa.string())


def make(folder: Path, name: str, columns: dict[str, Any]) -> str:
    WRITERS[name](folder / name, pa.table(columns))
    return str(folder / name)


@every_format
def test_every_row_is_read(tmp_path: Path, name: str):
    source = make(tmp_path, name, {"text": TEXTS, "id": range(len(TEXTS))})
    assert list(documents(source)) == TEXTS


KINDS = [
    *(pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary(7)),
    *(pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.binary())),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_type_of_text_is_read(tmp_path: Path, kind: pa.DataType):
    texts = ["text é", "texts b"]
    values = pa.array([text.encode() for text in texts])
    if pa.types.is_dictionary(kind):
        column = values.cast(kind.value_type).dictionary_encode()
    else:
        column = (values.cast(pa.string()) if "string" in str(kind) else values).cast(kind)
    assert column.type == kind
    assert list(documents(make(tmp_path, "a.parquet", {"text": column}))) == texts


@every_format
def test_a_value_that_is_not_utf8_is_one_bad_row(tmp_path: Path, name: str):
    for column in (broken_strings, pa.array):
        source = make(tmp_path, name, {"text": column([b"first", b"b\xffd", b"last"])})
        assert list(documents(source)) == ["first", BadRow("not UTF-8", f"{source} row 2"), "last"]


@every_format
def test_a_column_that_nobody_asked_for_is_never_decoded(tmp_path: Path, name: str):
    columns = {
        "prompt": ["a", "b"],
        "date": pa.array([FAR] * 2, pa.timestamp("us")),
        "zone": pa.array([0] * 2, pa.timestamp("ms", "Mars/Base")),
        "length": pa.array([FAR] * 2, pa.duration("s")),
        "inner": pa.array([{"date": FAR}] * 2, pa.struct([("date", pa.timestamp("us"))])),
        "broken": broken_strings([b"\xff", b"\xfe"]),
    }
    source = make(tmp_path, name, columns)
    assert list(rows(source, columns=("prompt", "more"))) == [{"prompt": "a"}, {"prompt": "b"}]
    named = list(rows(source, columns=("prompt",), others=True))
    assert named == [{**dict.fromkeys(columns, UNREAD), "prompt": text} for text in "ab"]


def test_a_value_that_python_cannot_hold_is_one_bad_row(tmp_path: Path):
    dates = pa.array([0, FAR, 0], pa.timestamp("us"))
    source = make(tmp_path, "a.parquet", {"text": ["a", "b", "c"], "date": dates})
    first, bad, last = rows(source)
    assert bad == BadRow("a value that cannot be read", f"{source} row 2")
    assert isinstance(first, dict) and isinstance(last, dict) and last["text"] == "c"


def test_damaged_bytes_of_another_column_are_not_read(tmp_path: Path):
    source = make(tmp_path, "a.parquet", {"text": TEXTS, "other": [f"{n}" * 99 for n in TEXTS]})
    chunk = pq.ParquetFile(source).metadata.row_group(0).column(1)
    content = bytearray(Path(source).read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    for place in range(start, start + chunk.total_compressed_size):
        content[place] ^= 0x5A
    Path(source).write_bytes(content)
    assert list(documents(source)) == TEXTS
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read to its end"):
        list(rows(source))


BODY = pa.array([{"body": "inner"}] * 2)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (BODY, r"column text is struct<body: string>, .*: title, text\.body$"),
        (pa.array([["a"]] * 2), r"column text is list<.*string>, .*: title$"),
        (pa.array([1, 2]), r"column text is int64, .*: title$"),
    ],
    ids=["struct", "list", "int64"],
)
@every_format
def test_a_column_that_is_no_text_is_named_with_the_field_to_choose(
    tmp_path: Path, name: str, column: pa.Array, message: str
):
    source = make(tmp_path, name, {"text": column, "title": ["a", "b"]})
    with pytest.raises(InputError, match=message) as refused:
        list(documents(source))
    assert "\n" not in str(refused.value)


@every_format
def test_a_field_of_a_struct_is_text(tmp_path: Path, name: str):
    source = make(tmp_path, name, {"text": BODY, "title": ["a", "b"]})
    assert list(documents(source, column="text.body")) == ["inner"] * 2
    (tmp_path / "a.jsonl").write_text('{"text": {"body": "inner"}}\n')
    assert list(documents(str(tmp_path / "a.jsonl"), column="text.body")) == ["inner"]
    with pytest.raises(InputError, match=r"no column text\.head, only text, title, text\.body"):
        list(documents(source, column="text.head"))


def test_a_column_that_stands_twice_is_read(tmp_path: Path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["a"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert list(documents(str(tmp_path / "twice.parquet"))) == ["a"]


def test_empty_groups_and_compressed_files_are_read(tmp_path: Path):
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for texts in ([], ["a"], [], ["b"]):
            writer.write_table(pa.table({"text": texts}, schema))
    packed = pa.compress((tmp_path / "a.parquet").read_bytes(), codec="zstd", asbytes=True)
    (tmp_path / "b.parquet.zst").write_bytes(packed)
    assert list(documents(str(tmp_path))) == ["a", "b"] * 2
