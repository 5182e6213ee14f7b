"""Read the rows of data sets on the Hugging Face Hub.

Training text is streamed; the questions of evaluations are downloaded.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from minigpt_jax.errors import InputError, RunError, first_line
from minigpt_jax.sources.columnar import (
    BATCH_ROWS,
    batch_rows,
    columns_to_read,
    other_columns,
    outer_columns,
)
from minigpt_jax.sources.found import is_split
from minigpt_jax.sources.kinds import endings
from minigpt_jax.sources.row import BadRow, Wanted, with_row_names


def streamed_rows(
    source: str, wanted: Wanted, *, name: str | None = None, files: range | None = None
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """(where, row) of the split "train", or of the only split, without a copy on the disk.

    `name` is the configuration of the data set. Only the files with the numbers `files` are read;
    None: all. Raises InputError for a data set that is missing, damaged or without the columns, and
    RunError when the connection to the Hub fails.
    """
    stream = _training_stream(source, name)
    if files is None:
        yield from _rows_of_stream(stream, source, source, wanted)
        return
    for number in files:
        where = f"{source} file {number + 1}"
        yield from _rows_of_stream(stream.shard(stream.num_shards, number), source, where, wanted)


def count_files(source: str, name: str | None) -> int:
    """The number of files that `streamed_rows` reads. Raises InputError and RunError."""
    return _training_stream(source, name).num_shards


def _training_stream(source: str, name: str | None) -> Any:
    with _errors_explained(source):
        splits = _builder(source, name).as_streaming_dataset()
    return splits[_training_split(splits, source)]


def _rows_of_stream(
    stream: Any, source: str, where: str, wanted: Wanted
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    number = 0
    with _errors_explained(source):
        for table in stream.with_format("arrow").iter(BATCH_ROWS):
            present = columns_to_read(table.schema, wanted, source)
            read = table.select(outer_columns(table.schema, present))
            others = other_columns(table.schema, present, wanted)
            yield from batch_rows(read, where, first=number, others=others)
            number += table.num_rows


@contextmanager
def _errors_explained(source: str) -> Iterator[None]:
    """Errors of `datasets` while it reads become one line."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{source}: the connection to the Hub failed ({first_line(error)}): "
            "run the same command again to continue"
        ) from None
    except ValueError as error:
        raise InputError(f"{source}: damaged ({first_line(error)})") from None


def downloaded_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row of `split`. Later calls read the cache of `datasets` on the disk.

    Raises InputError.
    """
    # Imported here and below, because it takes seconds and local sources do not need it.
    from datasets import get_dataset_split_names, load_dataset

    repository, revision = _parse(source)
    try:
        names = get_dataset_split_names(repository, revision=revision)
        # The Hub may call "val" "validation". An unknown name is reported by load_dataset.
        found = next((name for name in names if is_split(name, split)), split)
        yield from with_row_names(source, load_dataset(repository, split=found, revision=revision))
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_found(source, error) from None


def content_hash(source: str, name: str | None) -> str:
    """The hash that `datasets` gives a data set: on the Hub, its commit. Raises InputError."""
    return _builder(source, name).hash


def training_files(source: str, name: str | None) -> list[str]:
    """URLs of the files that `streamed_rows` reads, [] if unknown. Raises InputError."""
    files = _builder(source, name).config.data_files
    return [str(path) for path in files[_training_split(files, source)]] if files else []


# Each call asks the Hub, and three functions need the result.
@cache
def _builder(source: str, name: str | None) -> Any:
    from datasets import load_dataset_builder

    repository, revision = _parse(source)
    try:
        return load_dataset_builder(repository, name, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_found(source, error) from None


def _parse(source: str) -> tuple[str, str | None]:
    """Repository and revision of `owner/name@revision`."""
    repository, _, revision = source.partition("@")
    return repository, revision or None


def _training_split(splits: Mapping[str, Any], source: str) -> str:
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return next(iter(splits))
    raise InputError(f"{source}: no split 'train', only {', '.join(splits)}")


def _not_found(source: str, error: Exception) -> InputError:
    return InputError(
        f"{source}: no such file or folder, and could not be read from the Hub "
        f"({first_line(error)}). Without the Hub, name a local copy: a file that ends in "
        f"{endings()}, or a folder of such files. "
        "A data set with restricted access needs HF_TOKEN"
    )
