"""Read rows out of whatever holds them, so that no tool knows a file format, nor whether its source is here or on the hub.

A source is a local file, a folder of files, or the id of a hub data set (`owner/name` or `owner/name@revision`). The
same source gives the same rows in the same order, always: files by name, rows as they stand. What one row gets wrong
is answered with a BadRow, to be counted; what makes the whole source unreadable raises InputError.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from minigpt_jax.errors import InputError, RunError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")
_BATCH_ROWS = 256  # rows taken out of a columnar file at once: about a megabyte of web text
_BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte order mark counts as blank


class BadRow(NamedTuple):
    """A row that cannot be used: `reason` is a short constant phrase to count by, `where` the file and line."""

    reason: str
    where: str


def documents(
    source: str, *, name: str | None = None, column: str = "text"
) -> Iterator[str | BadRow]:
    """The text in `column` of every row of `source`; a row without letters there is a BadRow. Raises as `rows` does."""
    for row in rows(source, name=name, columns=(column,)):
        if isinstance(row, BadRow):
            yield row
            continue
        text = row.get(column)
        if not isinstance(text, str):
            yield BadRow("field missing or null" if text is None else "not a string", source)
        elif not text.strip():
            yield BadRow("blank", source)
        else:
            yield text


def rows(
    source: str,
    *,
    name: str | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
) -> Iterator[dict[str, Any] | BadRow]:
    """Every row of `source` in order; a text file is one row with the field "text".

    `name` and `split` choose within a hub data set; one that has a single split is used whole. `columns` are the
    fields to read where a format can leave others out. Raises InputError for a source that is not there, damaged, or
    (in formats with a schema) without those columns, and RunError when the hub stops answering.
    """
    files = local_files(source)
    if files is None:
        yield from hub_rows(source, name=name, split=split, columns=columns)
        return
    for path in files:
        try:
            yield from _file_rows(path, columns)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(
                f"{path}: cannot be read to its end ({error}): fetch or write this file again"
            ) from None


def local_files(source: str) -> list[Path] | None:
    """The files of a local source, by name; None where `source` can only be a hub id. Raises InputError when there is nothing to read."""
    path = Path(source)
    if path.is_dir():
        found = [
            p
            for p in path.rglob("*")
            if p.name.endswith(SUFFIXES) and p.is_file() and not _hidden(p.relative_to(path))
        ]
        if not found:
            raise InputError(f"{source}: no file in this folder ends in {', '.join(SUFFIXES)}")
        return sorted(found, key=lambda p: p.relative_to(path).as_posix())
    if path.is_file():
        if not source.endswith(SUFFIXES):
            raise InputError(
                f"{source}: unknown kind of file, expected one that ends in {', '.join(SUFFIXES)}"
            )
        return [path]
    if source.endswith(SUFFIXES) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"{source}: no such file or folder")
    return None


def identity(source: str, *, name: str | None = None) -> str:
    """One line that changes with the rows of `source`: names and sizes of local files, the revision of a hub data set."""
    files = local_files(source)
    if files is None:
        return f"{source.partition('@')[0]}@{_hub_builder(source, name).hash}" + (
            f" {name}" if name else ""
        )
    root, sizes = Path(source), [path.stat().st_size for path in files]
    names = [path.relative_to(root).as_posix() for path in files]
    digest = hashlib.sha256(json.dumps([names, sizes]).encode()).hexdigest()
    return f"{root.resolve().name} ({len(files)} files, {sum(sizes)} bytes, {digest[:12]})"


def text_bytes(
    source: str, *, name: str | None = None, split: str = "train", column: str = "text"
) -> int | None:
    """About how many bytes of text `source` holds, found without reading it; None where only reading would tell."""
    files = local_files(source)
    paths = [str(path) for path in files] if files else _hub_files(source, name, split)
    if paths and all(path.endswith(".parquet") for path in paths):
        # The footers say it. Those of thousands of remote files would take minutes: a few stand for all.
        measured = paths if files else paths[:: max(1, len(paths) // 4)]
        try:
            return (
                sum(_parquet_text_bytes(path, column) for path in measured)
                * len(paths)
                // len(measured)
            )
        except (OSError, ValueError):
            return None  # reading the rows will say what is wrong
    if not files or any(path.suffix in (".gz", ".parquet") for path in files):
        return None
    return sum(path.stat().st_size for path in files)


def hub_rows(
    source: str, *, name: str | None, split: str, columns: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """The rows of a hub data set (or of a folder in the hub's layout), streamed. Raises InputError and RunError as `rows` does."""
    streams = _hub_builder(source, name).as_streaming_dataset()
    stream = streams[_choose(split, streams, source)]
    try:
        for table in stream.with_format("arrow").iter(_BATCH_ROWS):
            yield from (
                table.select(_present(columns, table.column_names, source)) if columns else table
            ).to_pylist()
    except OSError as error:
        raise RunError(
            f"{source}: the hub stopped answering ({error}): run the same command again to continue"
        ) from None
    except ValueError as error:
        raise InputError(f"{source}: damaged ({error})") from None


@cache
def _hub_builder(source: str, name: str | None) -> Any:
    from datasets import load_dataset_builder  # a second to import, and only the hub needs it

    repository, _, revision = source.partition("@")
    try:
        return load_dataset_builder(repository, name, revision=revision or None)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}: neither a file or folder here nor a data set the hub gives out ({reason}). Without the hub, name a local file "
            f"or folder of {', '.join(SUFFIXES)}; a gated set needs HF_TOKEN"
        ) from None


def _hub_files(source: str, name: str | None, split: str) -> list[str]:
    files = _hub_builder(source, name).config.data_files
    return [str(path) for path in files[_choose(split, files, source)]] if files else []


def _choose(split: str, splits: Any, source: str) -> str:
    if split in splits:
        return split
    if len(splits) == 1:
        return next(iter(splits))
    raise InputError(f"{source}: no split {split!r}, only {', '.join(splits)}")


def _file_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any] | BadRow]:
    kind = path.name.removesuffix(".gz")
    if kind.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            wanted = _present(columns, file.schema_arrow.names, path) if columns else None
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if kind.endswith(".txt"):
            yield _text_row(file.read(), path)
        elif kind.endswith(".json") and file.peek(64).lstrip(_BLANK).startswith(b"["):
            for number, row in enumerate(json.load(file), 1):
                yield row if isinstance(row, dict) else BadRow("not an object", f"{path}:{number}")
        else:
            yield from _json_lines(file, path)


def _json_lines(file: Iterable[bytes], path: Path) -> Iterator[dict[str, Any] | BadRow]:
    for number, line in enumerate(file, 1):
        if not line.strip(_BLANK):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield BadRow("broken JSON", f"{path}:{number}")
            continue
        yield row if isinstance(row, dict) else BadRow("not an object", f"{path}:{number}")


def _text_row(content: bytes, path: Path) -> dict[str, Any] | BadRow:
    try:
        return {"text": content.decode("utf-8-sig").replace("\r\n", "\n")}
    except UnicodeDecodeError:
        return BadRow("not UTF-8", str(path))


def _present(columns: Sequence[str], found: Sequence[str], where: str | Path) -> list[str]:
    wanted = [column for column in columns if column in found]
    if not wanted:
        raise InputError(f"{where}: no column {' or '.join(columns)}, only {', '.join(found)}")
    return wanted


def _parquet_text_bytes(path: str, column: str) -> int:
    import fsspec  # opens hub addresses too

    with fsspec.open(path) as file, pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column
        )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
