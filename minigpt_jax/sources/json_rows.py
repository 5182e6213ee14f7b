"""Read the rows of JSON files: one a line, in a list, or objects over several lines.

`{"data": [...]}` is read as its list. A value is parsed as soon as it has been read, so that a file
of any size takes little memory.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from minigpt_jax.errors import InputError, first_line
from minigpt_jax.sources.found import is_split
from minigpt_jax.sources.kinds import open_file
from minigpt_jax.sources.row import BadRow, Wanted, field_of, name_some, with_row_names

# A byte order mark counts as blank.
_BLANK = b"\xef\xbb\xbf \t\r\n"
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
# Names that say that a list holds the rows of a file.
_LISTS = ("data", "rows", "examples", "records", "items", "documents", "train")

# Bytes of the first line that are read to tell whether each line is a row.
_LONGEST_LINE = 2**26
_CHUNK = 2**16
# An error so near to the end of what has been read may be due to the part that is missing.
_MARGIN = 32
_DECODER = json.JSONDecoder()


def json_rows(
    path: Path, kind: str, wanted: Wanted, split: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row; a row is any JSON value, or a BadRow.

    With `split`, a `.json` file may hold an object that maps splits to lists of rows; without, it
    may hold JSON lines. Raises InputError or ValueError for a file that cannot be read to its end.
    """
    is_list = kind == ".json" and _first_byte(path) == b"["
    with open_file(path) as file:
        if kind == ".json" and split is not None and not is_list:
            yield from with_row_names(path, _list_of_split(json.load(file), split, path))
        elif is_list or _holds_values(path, wanted):
            yield from _numbered_values(file, path, wanted)
        else:
            yield from _json_lines(file, path)


def _first_byte(path: Path) -> bytes:
    """The first byte that is not blank."""
    with open_file(path) as file:
        while (part := file.read(_CHUNK)) and not part.strip(_BLANK):
            pass
        return part.lstrip(_BLANK)[:1]


def _holds_values(path: Path, wanted: Wanted) -> bool:
    """Whether a file holds one value, or values over several lines, instead of JSON lines."""
    with open_file(path) as file:
        parts = (part.strip(_BLANK) for part in iter(partial(file.readline, _LONGEST_LINE), b""))
        lines = (part for part in parts if part)
        first, second = next(lines, b""), next(lines, None)
    text = first.decode("utf-8", "surrogateescape")
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        if second is None and end == len(text):
            is_row = isinstance(value, dict) and _is_row(value, wanted)
            inner = value.values() if isinstance(value, dict) else [value]
            return (wanted.columns is None or not is_row) and any(map(_is_list_of_objects, inner))
        if not text[end:].lstrip().startswith(("{", "[")):
            # A line with a row, or with one and something that makes this line bad.
            return False
    with open_file(path) as file:
        try:
            first_row = next(_values(_Reader(file), path, wanted), None)
        except (ValueError, RecursionError):
            return False
        return first_row is not None and not isinstance(first_row, BadRow)


def _json_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip(_BLANK):
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = BadRow("broken JSON", where)
        yield where, row


def _numbered_values(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        for number, row in enumerate(_values(_Reader(file), path, wanted), 1):
            where = f"{path} row {number}"
            yield where, row._replace(where=where) if isinstance(row, BadRow) else row
    except ValueError as error:
        raise ValueError(f"after row {number}: {first_line(error)}") from None


def _list_of_split(content: object, split: str, path: Path) -> list[Any]:
    splits = content if isinstance(content, dict) else {}
    found = next((splits[name] for name in splits if is_split(name, split)), None)
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of rows, or an object whose {split!r} is one")
    return found


class _Reader:
    """Parses the values of a file, of which it holds a part."""

    def __init__(self, file: IO[bytes]):
        # A byte that is not UTF-8 becomes a surrogate, and makes one row bad.
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while (found := _NOT_BLANK.search(self._text, self._at)) is None:
            if not self._read_more():
                return ""
        self._at = found.start()
        return found[0]

    def is_at_objects(self) -> bool:
        """Whether the next value is a list whose first element is an object."""
        if self.peek() != "[":
            return False
        while (found := _NOT_BLANK.search(self._text, self._at + 1)) is None:
            if not self._read_more():
                return False
        return found[0] == "{"

    def take(self, *expected: str) -> str:
        """Go past the next character, which must be one of those."""
        if (found := self.peek()) not in expected:
            raise ValueError(f"found {found or 'the end'!r}, expected {' or '.join(expected)}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value; a BadRow for one with bytes that are not UTF-8."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number that ends here may go on.
                if end < len(self._text) or not self._read_more():
                    break
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string")
                is_cut |= error.pos >= len(self._text) - _MARGIN
                if not is_cut or not self._read_more():
                    raise ValueError(f"broken JSON: {error.msg}") from None
        raw, self._at = self._text[self._at : end], end
        try:
            raw.encode()
        except UnicodeEncodeError:
            return BadRow("not UTF-8", "")
        return value

    def _read_more(self) -> bool:
        # As much as there is already: a long value is then parsed a few times only.
        more = self._file.read(max(_CHUNK, len(self._text) - self._at))
        if more:
            self._text = self._text[self._at :] + more
            self._at = 0
        return bool(more)


def _values(reader: _Reader, path: Path, wanted: Wanted) -> Iterator[Any]:
    """The rows of a file of values: those of a list, or each object."""
    while start := reader.peek():
        if start == "[":
            yield from _elements(reader)
        elif start == "{":
            yield from _rows_of_object(reader, path, wanted)
        else:
            yield reader.value()


def _elements(reader: _Reader) -> Iterator[Any]:
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    yield reader.value()
    while reader.take(",", "]") == ",":
        yield reader.value()


def _rows_of_object(reader: _Reader, path: Path, wanted: Wanted) -> Iterator[Any]:
    """The object as a row, or the rows of the list in it where it is no row itself.

    Raises InputError for an object that is both, or that holds several lists.
    """
    row: dict[str, Any] = {}
    lists: list[str] = []
    asked = wanted.columns or ()
    bad = None
    separator = reader.take("{")
    while separator != "}" and reader.peek() != "}":
        name = reader.value()
        reader.take(":")
        may_be_rows = name in _LISTS and name not in asked and not _is_row(row, wanted)
        if may_be_rows and reader.is_at_objects():
            lists.append(name)
            yield from _elements(reader)
        else:
            row[name] = reader.value()
            bad = row[name] if isinstance(row[name], BadRow) else bad
        separator = reader.take(",", "}")
    if separator != "}":
        reader.take("}")
    if bad is not None:
        yield bad
        return
    inner = [name for name, value in row.items() if _is_list_of_objects(value)]
    is_row = _is_row(row, wanted)
    if is_row and not lists:
        yield row
    elif is_row:
        raise InputError(
            f"{path}: an object with the list {lists[0]} before {name_some([*row])}: is it a row, "
            "or does it hold the rows? Write one row a line"
        )
    elif len(lists + inner) > 1:
        raise InputError(
            f"{path}: an object with the lists {name_some(lists + inner)}, expected one list of "
            "rows: write the rows of one into a file of their own"
        )
    elif not lists:
        yield from row[inner[0]] if inner else [row]


def _is_row(fields: dict[str, Any], wanted: Wanted) -> bool:
    """Whether an object is a row: it has a field that is asked for."""
    if wanted.columns is None:
        return bool(fields)
    return any(field_of(fields, column) is not None for column in wanted.columns)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
