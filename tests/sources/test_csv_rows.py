"""Tables: quotes, line ends and delimiters as spreadsheets write them, and bad rows alone."""

import codecs
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.sources import UNREAD, BadRow, documents, rows

LONG = "word " * 100_000
TABLE = f'id@text\r\n1@"two\nlines, ""quoted""; \t"\r\n\r\n2@{LONG}\r\n3@\r\n'
TEXTS = ['two\nlines, "quoted"; \t', LONG]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_rows_are_read_with_every_delimiter(tmp_path: Path, name: str, delimiter: str):
    path = tmp_path / name
    path.write_bytes(codecs.BOM_UTF8 + TABLE.replace("@", delimiter).encode())
    assert list(documents(str(path))) == [*TEXTS, BadRow("blank", f"{path}:6")]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text("id,text\n1,a\n")
    source = str(tmp_path / "a.csv")
    assert list(rows(source)) == [{"id": "1", "text": "a"}]
    assert list(rows(source, columns=("text",), others=True)) == [{"id": UNREAD, "text": "a"}]
    with pytest.raises(InputError, match=r"a\.csv: no column body, only id, text"):
        list(documents(source, column="body"))


def test_a_bad_row_is_one_bad_row(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,a\n2,b,c\n3\n4,\xff\n5,"x"y\n6,last\n')
    found = list(documents(str(path)))
    fields = "another number of fields than the first line"
    assert found == [
        "a",
        BadRow(fields, f"{path}:3"),
        BadRow(fields, f"{path}:4"),
        BadRow("not UTF-8", f"{path}:5"),
        BadRow("broken CSV", f"{path}:6"),
        "last",
    ]


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path):
    """It would take all rows below into one."""
    (tmp_path / "a.csv").write_text('id,text\n1,a\n2,"b\n3,c\n4,d\n')
    with pytest.raises(InputError, match=r"a\.csv:3: a quote in this row is never closed"):
        list(documents(str(tmp_path / "a.csv")))
