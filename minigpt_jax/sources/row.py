"""What a row is for all readers: the fields that are asked for, and a row that cannot be used."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from minigpt_jax.errors import InputError


class Unread(Enum):
    """The value of a field that nobody asked for, in formats that can leave it out."""

    UNREAD = "not read"


UNREAD = Unread.UNREAD

_SHOWN_NAMES = 10
_SHOWN_CHARACTERS = 200


class BadRow(NamedTuple):
    """A row that cannot be used: `reason` is a short constant phrase, `where` its file and line."""

    reason: str
    where: str


@dataclass(frozen=True)
class Wanted:
    """The fields to read, for formats that can leave the others out; None: all.

    With `as_text`, they must hold text. With `others`, a row also has the fields that are left out,
    with the value UNREAD.
    """

    columns: Sequence[str] | None = None
    as_text: bool = False
    others: bool = False


def field_of(row: dict[str, Any], name: str) -> Any:
    """The value of a field, or None. "a.b" is also the field b of the object a."""
    if name in row:
        return row[name]
    outer, dot, inner = name.partition(".")
    value = row.get(outer) if dot else None
    return field_of(value, inner) if isinstance(value, dict) else None


def wanted_columns(wanted: Wanted, found: Sequence[str], where: str | Path) -> list[str]:
    """Those columns of a file that are read. Raises InputError where it has none of them."""
    if wanted.columns is None:
        return list(dict.fromkeys(found))
    present = [column for column in wanted.columns if column in found]
    if not present:
        asked = "no column" if len(wanted.columns) == 1 else "none of the columns"
        raise InputError(f"{where}: {asked} {name_some(wanted.columns)}, only {name_some(found)}")
    return present


def with_row_names(source: object, found: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(where, row) for the rows of a source without lines."""
    return ((f"{source} row {number}", row) for number, row in enumerate(found, 1))


def name_some(names: Sequence[str]) -> str:
    """The first names, and how many more there are, in one line that any terminal can show."""
    shown = ", ".join(_shown(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _shown(name: str) -> str:
    # A name may hold line ends, and bytes that are not UTF-8.
    text = name if name.isprintable() else name.encode("unicode_escape").decode()
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]}...{text[-half:]}"
