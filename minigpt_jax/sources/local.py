"""Find local files and read their rows in any format: parquet, JSON, JSON lines or text."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minigpt_jax.errors import InputError, first_line

ROW_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
SUFFIXES = (*ROW_SUFFIXES, ".txt", ".txt.gz")
# Rows that are read together from a columnar file: about a megabyte of web text.
BATCH_ROWS = 256

# A byte order mark counts as blank.
_BLANK = b"\xef\xbb\xbf \t\r\n"


class BadRow(NamedTuple):
    """A row that cannot be used: `reason` is a short constant phrase, `where` its file and line."""

    reason: str
    where: str


def local_files(source: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path] | None:
    """The files of a local source, sorted by name. None where `source` can only be a Hub id.

    Raises InputError where there is nothing to read.
    """
    path = Path(source)
    expected = ", ".join(suffixes)
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.name.endswith(suffixes) and file.is_file() and not _is_hidden(file, path)
        ]
        if not found:
            raise InputError(f"{source}: no file in this folder ends in {expected}")
        return sorted(found, key=lambda file: file.relative_to(path).as_posix())
    if path.is_file():
        if not source.endswith(suffixes):
            raise InputError(
                f"{source}: unknown kind of file, expected one that ends in {expected}"
            )
        return [path]
    if source.endswith(SUFFIXES) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise no_such_source(source)
    return None


def file_rows(
    files: Iterable[Path], *, columns: Sequence[str] | None = None, split: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row of `files`; a row is what the file holds there, or a BadRow.

    `columns` are the fields to read, for formats that can leave the others out. With `split`, a
    `.json` file may hold an object that maps splits to lists of rows; without, it may hold JSON
    lines. Raises InputError for a damaged file.
    """
    for path in files:
        try:
            yield from _rows_of_file(path, columns, split)
        except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
            raise InputError(
                f"{path}: cannot be read to its end ({first_line(error)}): "
                "fetch or write this file again"
            ) from None


def with_row_names(source: object, found: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(where, row) for the rows of a source without lines."""
    return ((f"{source} row {number}", row) for number, row in enumerate(found, 1))


def columns_to_read(
    columns: Sequence[str] | None, found: list[str], where: str | Path
) -> list[str]:
    """Those of `columns` that were found, or all. Raises InputError where none was found."""
    if columns is None:
        return found
    present = [column for column in columns if column in found]
    if not present:
        raise InputError(f"{where}: no column {' or '.join(columns)}, only {', '.join(found)}")
    return present


def is_split(name: str, split: str) -> bool:
    """Whether a file or a split of this name belongs to `split`: "val" is also "validation-0"."""
    return name.lower().startswith(split[:3])


def no_such_source(source: str) -> InputError:
    """The error for a source that exists neither here nor on the Hub."""
    return InputError(
        f"{source}: no such file or folder, and not the id of a Hub data set (owner/name)"
    )


def parquet_text_bytes(path: str, column: str) -> int:
    """Bytes of `column` in a local or remote parquet file, read from its footer."""
    import fsspec
    from pyarrow.parquet import ParquetFile

    with fsspec.open(path) as file, ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)


def _rows_of_file(
    path: Path, columns: Sequence[str] | None, split: str | None
) -> Iterator[tuple[str, Any]]:
    kind = path.name.removesuffix(".gz")
    if kind.endswith(".parquet"):
        yield from with_row_names(path, _parquet_rows(path, columns))
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if kind.endswith(".txt"):
            yield str(path), _text_row(file.read(), path)
        elif kind.endswith(".json") and file.peek(64).lstrip(_BLANK).startswith(b"["):
            yield from with_row_names(path, json.load(file))
        elif kind.endswith(".json") and split is not None:
            yield from with_row_names(path, _list_of_split(json.load(file), split, path))
        else:
            yield from _json_lines(file, path)


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        present = columns_to_read(columns, file.schema_arrow.names, path)
        for batch in file.iter_batches(BATCH_ROWS, columns=present):
            yield from batch.to_pylist()


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


def _list_of_split(content: object, split: str, path: Path) -> list[Any]:
    splits = content if isinstance(content, dict) else {}
    found = next((splits[name] for name in splits if is_split(name, split)), None)
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of rows, or an object whose {split!r} is one")
    return found


def _text_row(content: bytes, path: Path) -> dict[str, str] | BadRow:
    try:
        return {"text": content.decode("utf-8-sig").replace("\r\n", "\n")}
    except UnicodeDecodeError:
        return BadRow("not UTF-8", str(path))


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
