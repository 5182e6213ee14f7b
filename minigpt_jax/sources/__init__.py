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

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minigpt_jax.errors import InputError
from minigpt_jax.sources import hub
from minigpt_jax.sources.local import (
    ROW_SUFFIXES,
    BadRow,
    file_rows,
    is_split,
    local_files,
    no_such_source,
    parquet_text_bytes,
)

__all__ = ["BadRow", "documents", "identity", "local_files", "rows", "split_rows", "text_bytes"]

# Files of a Hub data set whose footers are read to estimate the size of all.
_SAMPLED_FILES = 4


def documents(
    source: str, *, name: str | None = None, column: str = "text"
) -> Iterator[str | BadRow]:
    """The text in `column` of every row of `source`. A row without text is a BadRow.

    Raises as `rows` does.
    """
    for row in rows(source, name=name, columns=(column,)):
        if isinstance(row, BadRow):
            yield row
            continue
        text = row.get(column)
        if text is None:
            yield BadRow("field missing or null", source)
        elif not isinstance(text, str):
            yield BadRow("not a string", source)
        elif not text.strip():
            yield BadRow("blank", source)
        else:
            yield text


def rows(
    source: str, *, name: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any] | BadRow]:
    """Every row of `source` in order. A text file is one row with the field "text".

    `name` is the configuration of a Hub data set, of which the split "train" is read, or the only
    split. `columns` are the fields to read, for formats that can leave the others out. Raises
    InputError for a source that is missing, damaged or (in formats with a schema) without these
    columns, and RunError when the connection to the Hub fails.
    """
    files = local_files(source)
    if files is None:
        yield from hub.streamed_rows(source, name=name, columns=columns)
        return
    for where, row in file_rows(files, columns=columns):
        yield row if isinstance(row, dict | BadRow) else BadRow("not an object", where)


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
    files = local_files(source, ROW_SUFFIXES)
    if files is not None:
        return file_rows([f for f in files if is_split(f.name, split)] or files, split=split)
    if "/" not in source:
        # Not on the Hub either: a mistyped file name should not wait for the network.
        raise no_such_source(source)
    return hub.downloaded_rows(source, split)


def identity(source: str, *, name: str | None = None) -> str:
    """One line that changes with the rows of `source`.

    It holds names and sizes of local files, or the hash of a Hub data set.
    """
    files = local_files(source)
    if files is None:
        configuration = f" {name}" if name else ""
        return f"{source.partition('@')[0]}@{hub.content_hash(source, name)}{configuration}"
    root = Path(source)
    sizes = [path.stat().st_size for path in files]
    names = [path.relative_to(root).as_posix() for path in files]
    digest = hashlib.sha256(json.dumps([names, sizes]).encode()).hexdigest()
    return f"{root.resolve().name} ({len(files)} files, {sum(sizes)} bytes, {digest[:12]})"


def text_bytes(source: str, *, name: str | None = None, column: str = "text") -> int | None:
    """About how many bytes of text `source` holds, without reading the text. None if unknown."""
    files = local_files(source)
    paths = [str(path) for path in files] if files else hub.training_files(source, name)
    if paths and all(path.endswith(".parquet") for path in paths):
        # The footers of thousands of remote files would take minutes.
        sample = paths if files else paths[:: max(1, len(paths) // _SAMPLED_FILES)]
        try:
            size = sum(parquet_text_bytes(path, column) for path in sample)
        except (OSError, ValueError):
            return None  # reading the rows will report what is wrong
        return size * len(paths) // len(sample)
    if not files or any(path.suffix in (".gz", ".parquet") for path in files):
        return None
    return sum(path.stat().st_size for path in files)
