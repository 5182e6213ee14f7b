"""Read parquet and Arrow files: only the columns that are asked for, and each bad value alone.

Bytes that are UTF-8 are text, whatever type a column has for them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from minigpt_jax.errors import InputError
from minigpt_jax.sources.kinds import open_seekable
from minigpt_jax.sources.row import UNREAD, BadRow, Wanted, name_some, wanted_columns

# Rows that are read together: about a megabyte of web text.
BATCH_ROWS = 256
# What a value raises that Python cannot hold, such as a date in the year 300,000.
_BAD_VALUE = (ValueError, OverflowError, LookupError, TypeError, NotImplementedError)


def columnar_rows(
    path: Path, kind: str, wanted: Wanted
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(where, row) for every row of a file. Raises InputError for a column that is no text."""
    with open_seekable(path) as file:
        number = 0
        batches = _parquet_batches if kind == ".parquet" else _arrow_batches
        for batch, others in batches(file, path, wanted):
            yield from batch_rows(batch, path, first=number, others=others)
            number += batch.num_rows


def batch_rows(
    batch: Any, source: object, *, first: int = 0, others: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(where, row) for the rows of an Arrow batch or table, whose first row is number `first`.

    A row with a value that cannot be read is a BadRow. The fields `others` have the value UNREAD.
    """
    bad: dict[int, str] = {}
    columns = {
        name: _values(column, bad)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    template = dict.fromkeys(others, UNREAD)
    for index in range(batch.num_rows):
        where = f"{source} row {first + index + 1}"
        if index in bad:
            yield where, BadRow(bad[index], where)
        else:
            yield where, template | {name: values[index] for name, values in columns.items()}


def columns_to_read(schema: Any, wanted: Wanted, where: str | Path) -> list[str]:
    """The columns of a schema that are read; "a.b" is the field b of the column a.

    Raises InputError where none is there, or where it cannot hold the text that is asked for.
    """
    if wanted.columns is None:
        return wanted_columns(wanted, schema.names, where)
    present = wanted_columns(wanted, list(_fields(schema)), where)
    if wanted.as_text:
        for column in present:
            _expect_text(schema, column, where)
    return present


def parquet_text_bytes(path: str, column: str) -> int:
    """Bytes of `column` in a local or remote parquet file, read from its footer."""
    import fsspec
    from pyarrow.parquet import ParquetFile

    with fsspec.open(path) as file, ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)


def _parquet_batches(
    file: IO[bytes], path: Path, wanted: Wanted
) -> Iterator[tuple[Any, list[str]]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        present = columns_to_read(schema, wanted, path)
        others = other_columns(schema, present, wanted)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=present):
            yield batch, others


def _arrow_batches(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[tuple[Any, list[str]]]:
    from pyarrow import ipc

    magic = file.read(4)
    file.seek(0)
    if magic == b"FEA1":
        raise InputError(f"{path}: version 1 of the Feather format: write it again as version 2")
    is_stream = magic != b"ARRO"
    reader = ipc.open_stream(file) if is_stream else ipc.open_file(file)
    schema = reader.schema
    present = columns_to_read(schema, wanted, path)
    others = other_columns(schema, present, wanted)
    read = outer_columns(schema, present)
    chosen = [index for index, name in enumerate(schema.names) if name in read]
    # Columns that are left out are not even unpacked.
    options = ipc.IpcReadOptions(included_fields=chosen)
    file.seek(0)
    if is_stream:
        batches = iter(ipc.open_stream(file, options=options))
    else:
        reader = ipc.open_file(file, options=options)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    for batch in batches:
        # A whole file may be one batch.
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS), others


def outer_columns(schema: Any, present: list[str]) -> list[str]:
    """The columns of the schema that are, or that hold, those that are read."""
    read = {column if column in schema.names else column.split(".")[0] for column in present}
    return [name for name in dict.fromkeys(schema.names) if name in read]


def other_columns(schema: Any, present: list[str], wanted: Wanted) -> list[str]:
    """The columns that are left out, if they are to be named."""
    read = outer_columns(schema, present)
    return [name for name in schema.names if name not in read] if wanted.others else []


def _values(column: Any, bad: dict[int, str]) -> list[Any]:
    """The values of a column; the index of each that cannot be read is added to `bad`."""
    is_binary = _holds_bytes(column.type)
    try:
        # The offsets too, which Arrow would otherwise trust.
        column.validate(full=True)
        values = column.to_pylist()
        return [_as_text(value) for value in values] if is_binary else values
    except _BAD_VALUE:
        return [_value(column, index, bad) for index in range(len(column))]


def _value(column: Any, index: int, bad: dict[int, str]) -> Any:
    one = column.slice(index, 1)
    try:
        one.validate(full=True)
        return _as_text(one.to_pylist()[0])
    except _BAD_VALUE as error:
        is_encoding = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
        bad[index] = "not UTF-8" if is_encoding else "a value that cannot be read"
    return None


def _as_text(value: Any) -> Any:
    """The value, with text in place of bytes. Raises UnicodeDecodeError."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name: _as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_text(inner) for inner in value]
    return value


def _holds_bytes(kind: Any) -> bool:
    """Whether an Arrow type, or one inside it, is of bytes."""
    return "binary" in str(kind)


def _expect_text(schema: Any, column: str, where: str | Path) -> None:
    """Raises InputError unless the column holds text or null."""
    fields = _fields(schema)
    if _can_hold_text(fields[column]):
        return
    texts = [name for name, kind in fields.items() if _can_hold_text(kind)]
    choice = f"choose a field of text: {name_some(texts)}" if texts else "no field here is text"
    raise InputError(f"{where}: column {column} is {fields[column]}, expected text: {choice}")


def _fields(schema: Any) -> dict[str, Any]:
    """The type of every column, then of the fields in structs, by names such as "a.b"."""
    found: dict[str, Any] = {}
    outer = [(field.name, field.type) for field in schema]
    while outer:
        found |= dict(outer)
        outer = [
            (f"{name}.{field.name}", field.type)
            for name, kind in outer
            if str(kind).startswith("struct")
            for field in kind
        ]
    return found


def _can_hold_text(kind: Any) -> bool:
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = "string" in str(kind) or "binary" in str(kind)
    return types.is_null(kind) or (is_text and not types.is_nested(kind))
