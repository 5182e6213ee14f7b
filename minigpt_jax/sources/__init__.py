"""Read rows of local files and Hub data sets, so that no tool and no evaluation knows a format.

A source is a local file, a folder of files, or the id of a data set on the Hugging Face Hub
(`owner/name` or `owner/name@revision`). The same source always gives the same rows in the same
order: files by name, rows in file order. There are two ways to read it:

- `rows` and `documents` stream any amount of data. A row that cannot be used becomes a BadRow,
  which the caller counts. A source that cannot be read raises InputError.
- `split_rows` reads the questions of an evaluation. One missing row would change the score, so the
  first row that cannot be used raises InputError.

pyarrow and datasets are imported only inside the functions that need them: train.py imports this
package before it checks its flags.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from minigpt_jax.errors import InputError
from minigpt_jax.sources import hub
from minigpt_jax.sources.columnar import parquet_text_bytes
from minigpt_jax.sources.earlier import earlier_files, earlier_identity
from minigpt_jax.sources.found import Found, find, is_split, no_such_source, unread_notes
from minigpt_jax.sources.identities import (
    FileContent,
    file_contents,
    folder_name,
    hub_identity,
    identity,
    identity_of,
    names_and_sizes,
)
from minigpt_jax.sources.kinds import COLUMNAR, KINDS, ROWS, is_compressed, kind_of
from minigpt_jax.sources.local import file_rows
from minigpt_jax.sources.row import UNREAD, BadRow, Wanted, field_of, name_some

__all__ = [
    "ROWS",
    "UNREAD",
    "BadRow",
    "FileContent",
    "FileTime",
    "Found",
    "count_files",
    "documents",
    "earlier_identity",
    "file_contents",
    "find",
    "folder_name",
    "hub_identity",
    "identity",
    "identity_of",
    "name_some",
    "names_and_sizes",
    "read_as_earlier",
    "rows",
    "split_rows",
    "text_bytes",
    "times",
    "unread_notes",
]

# Files of a Hub data set whose footers are read to estimate the size of all.
_SAMPLED_FILES = 4


def documents(
    source: str, *, name: str | None = None, column: str = "text", files: range | None = None
) -> Iterator[str | BadRow]:
    """The text in `column` of every row of `source`. A row without text is a BadRow.

    The column "a.b" is the field b of the column a. Only the files with the numbers `files` are
    read; None: all. Raises as `rows` does.
    """
    wanted = Wanted((column,), as_text=True)
    for where, row in _rows(source, name, wanted, KINDS, files):
        if isinstance(row, BadRow):
            yield row
            continue
        text = field_of(row, column)
        if text is None:
            yield BadRow("field missing or null", where)
        elif not isinstance(text, str):
            yield BadRow("not a string", where)
        elif not text.strip():
            yield BadRow("blank", where)
        else:
            yield text


def rows(
    source: str,
    *,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    kinds: tuple[str, ...] = KINDS,
    others: bool = False,
) -> Iterator[dict[str, Any] | BadRow]:
    """Every row of `source` in order. A text file is one row with the field "text".

    `name` is the configuration of a Hub data set, of which the split "train" is read, or the only
    split. `columns` are the fields to read, for formats that can leave the others out; with
    `others`, those have the value UNREAD. `kinds` are the kinds of local files to read. Raises
    InputError for a source that is missing, damaged or (in formats with a schema) without these
    columns, and RunError when a file or the connection to the Hub fails.
    """
    wanted = Wanted(columns, others=others)
    return (row for _, row in _rows(source, name, wanted, kinds))


def count_files(source: str, *, name: str | None = None) -> int:
    """The number of files that `documents` reads. Raises InputError."""
    found = find(source)
    return hub.count_files(source, name) if found is None else len(found.files)


def _rows(
    source: str,
    name: str | None,
    wanted: Wanted,
    kinds: tuple[str, ...],
    files: range | None = None,
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    found = find(source, kinds)
    if found is None:
        yield from hub.streamed_rows(source, wanted, name=name, files=files)
        return
    chosen = found.files if files is None else found.files[files.start : files.stop]
    for where, row in file_rows(chosen, wanted):
        yield where, row if isinstance(row, dict | BadRow) else BadRow("not an object", where)


def split_rows(
    source: str, *, split: str, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for every row of one split; `where` names the file and the row for messages.

    A `.json` file holds a list of rows, or an object that maps splits to such lists. In a folder
    whose files are named after splits, the files of `split` are read. "val" and "validation" are
    the same split. Raises InputError for the first row without all `columns`, and as `rows` does.
    """
    expected = f"expected an object with {', '.join(columns)}"
    for where, row in _rows_of_split(source, split):
        if isinstance(row, BadRow):
            raise InputError(f"{where}: {row.reason}, {expected}")
        if not isinstance(row, dict):
            raise InputError(f"{where}: found {type(row).__name__}, {expected}")
        if missing := [column for column in columns if column not in row]:
            fields = ", ".join(row) or "nothing"
            raise InputError(f"{where}: no {' and no '.join(missing)} here, only {fields}")
        yield where, row


def _rows_of_split(source: str, split: str) -> Iterator[tuple[str, Any]]:
    found = find(source, ROWS, split=split)
    if found is not None:
        files = [f for f in found.files if is_split(f.name, split)] or found.files
        return file_rows(files, Wanted(), split=split)
    if "/" not in source:
        # Not on the Hub either: a mistyped file name should not wait for the network.
        raise no_such_source(source)
    return hub.downloaded_rows(source, split)


def read_as_earlier(source: str) -> bool:
    """Whether version 0.1.0, which recorded no content, read the same files of a local source."""
    found = find(source)
    return found is None or found.files == earlier_files(source)


class FileTime(NamedTuple):
    """What tells that a file changed while it was read."""

    path: str
    size: int
    modified_ns: int


def times(source: str) -> list[FileTime]:
    """The state of each local file of a source."""
    found = find(source)
    states = [(path, path.stat()) for path in found.files] if found else []
    return [FileTime(str(path), state.st_size, state.st_mtime_ns) for path, state in states]


def text_bytes(source: str, *, name: str | None = None, column: str = "text") -> int | None:
    """About how many bytes of text `source` holds, without reading the text. None if unknown."""
    found = find(source)
    files = None if found is None else found.files
    paths = [str(path) for path in files] if files else hub.training_files(source, name)
    if paths and all(path.endswith(".parquet") for path in paths):
        # The footers of thousands of remote files would take minutes.
        sample = paths if files else paths[:: max(1, len(paths) // _SAMPLED_FILES)]
        try:
            size = sum(parquet_text_bytes(path, column) for path in sample)
        except (OSError, ValueError):
            return None  # reading the rows will report what is wrong
        return size * len(paths) // len(sample)
    if not files or any(is_compressed(path) or kind_of(path.name) in COLUMNAR for path in files):
        return None
    return sum(path.stat().st_size for path in files)
