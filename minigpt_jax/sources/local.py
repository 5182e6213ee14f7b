"""Read the rows of local files of any kind."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minigpt_jax.errors import InputError, RunError
from minigpt_jax.sources.columnar import columnar_rows
from minigpt_jax.sources.csv_rows import csv_rows
from minigpt_jax.sources.json_rows import json_rows
from minigpt_jax.sources.kinds import COLUMNAR, DAMAGE, TABLES, TEXTS, cause_of, kind_of, open_file
from minigpt_jax.sources.row import BadRow, Wanted


def file_rows(
    files: Iterable[Path], wanted: Wanted, *, split: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(where, row) for every row of `files`; a row is what the file holds there, or a BadRow.

    `split` is for `.json` files that hold several. Raises InputError for a damaged file, and
    RunError for one that the machine cannot read.
    """
    for path in files:
        try:
            yield from _rows_of_file(path, wanted, split)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise RunError(f"{path}: cannot be read: {error.strerror}") from None
            raise InputError(
                f"{path}: cannot be read to its end ({cause_of(error)}): "
                "fetch or write this file again"
            ) from None


def _rows_of_file(path: Path, wanted: Wanted, split: str | None) -> Iterator[tuple[str, Any]]:
    kind = kind_of(path.name) or ""
    if kind in COLUMNAR:
        yield from columnar_rows(path, kind, wanted)
    elif _is_utf16(path):
        yield str(path), BadRow("UTF-16, not UTF-8", str(path))
    elif kind in TEXTS:
        with open_file(path) as file:
            yield str(path), _text_row(file.read(), path)
    elif kind in TABLES:
        with open_file(path) as file:
            yield from csv_rows(file, path, kind, wanted)
    else:
        yield from json_rows(path, kind, wanted, split)


def _is_utf16(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _text_row(content: bytes, path: Path) -> dict[str, str] | BadRow:
    try:
        return {"text": content.decode("utf-8-sig").replace("\r\n", "\n")}
    except UnicodeDecodeError:
        return BadRow("not UTF-8", str(path))
