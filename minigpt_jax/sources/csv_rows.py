"""Read the rows of tables as text: the first line names the columns."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from minigpt_jax.errors import InputError
from minigpt_jax.sources.row import UNREAD, BadRow, Wanted, wanted_columns

# A field may hold a whole book. One without a closing quote would grow to the end of the file.
_LONGEST_FIELD = 2**28
_DELIMITERS = (",", "\t", ";", "|")


def csv_rows(
    file: IO[bytes], path: Path, kind: str, wanted: Wanted
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(where, row) for every row. Raises InputError for a quote that is never closed."""
    csv.field_size_limit(_LONGEST_FIELD)
    # A byte that is not UTF-8 becomes a surrogate, and makes one row bad.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline()
    delimiter = "\t" if kind == ".tsv" else max(_DELIMITERS, key=first.count)
    reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
    names = None
    columns: list[str] = []
    others: dict[str, Any] = {}
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise InputError(f"{where}: a quote in this row is never closed") from None
            yield where, BadRow("broken CSV", where)
            continue
        if not fields:
            continue
        if names is None:
            names = fields
            columns = wanted_columns(wanted, names, path)
            others = dict.fromkeys(names, UNREAD) if wanted.others else {}
        elif len(fields) != len(names):
            yield where, BadRow("another number of fields than the first line", where)
        elif not _is_utf8(fields):
            yield where, BadRow("not UTF-8", where)
        else:
            row = dict(zip(names, fields, strict=True))
            yield where, others | {column: row[column] for column in columns}


def _is_utf8(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
