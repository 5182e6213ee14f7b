"""The file format of a part: the tokens of some of the source files, written whole or not at all.

Only the number of a document depends on the documents before it. A part holds none, so that parts
can be made in any order, on any machines, and joined later (join_parts.py).

A part is an .npz archive: `bounds_000000.npy` and `tokens_000000.npy` are those of a batch (see
encoders.Encoded), and `part.json` says what the part was made from. The file is renamed into place
when it is complete: where it exists, the part is done. Archives have checksums, which are compared
when a part is read.
"""

import errno
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from data_tools.encoders import Encoded
from minigpt_jax.errors import InputError, first_line
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import errors_name
from minigpt_jax.sources import FileContent

FORMAT = 1
RECORD = "part.json"
_NAME = re.compile(r"part_(\d+)_of_(\d+)\.npz")
# What the readers raise for bytes that are not those of a part.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class PartSource:
    """What a part was made from, of one source.

    A local source has the `name` of its folder, and the `files` that the part holds. A Hub data set
    has its identity as `name`, which holds its commit, and None.
    """

    name: str
    files: list[FileContent] | None


@dataclass(frozen=True)
class PartRecord:
    """What a part is: number `index` of `of`, and what decides its bytes.

    `plan` describes the text and the settings in one line, which is the same in all parts. `recipe`
    has the fields of Recipe, `sources` one entry for each source. `documents`, `batches` and
    `tokens` are how many there are; `skipped` and `named` tell of skipped rows (see RowCounts).
    """

    index: int
    of: int
    plan: str
    recipe: dict[str, Any]
    sources: list[PartSource]
    documents: int
    skipped: dict[str, int]
    named: dict[str, list[str]]
    batches: int
    tokens: int


def part_path(folder: Path, index: int, of: int) -> Path:
    """Where part `index` of `of` is, or will be."""
    return folder / f"part_{index:05d}_of_{of:05d}.npz"


def find_parts(folder: Path) -> dict[tuple[int, int], Path]:
    """The complete parts of a folder by (index, of), sorted. Raises OSError without a folder."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return dict(sorted(((int(name[1]), int(name[2])), path) for name, path in found if name))


def expect_no_parts(out: Path) -> None:
    """Raise InputError for a folder of parts where shards are to be written."""
    if out.is_dir() and find_parts(out):
        raise InputError(f"--out {out}: holds parts: choose another folder for the shards")


def write_part(
    path: Path, batches: Iterable[Encoded], record: Callable[[int, int], PartRecord]
) -> None:
    """Write a part. `record` is called with the numbers of batches and tokens after the last batch.

    Two processes may write the same part at once: the last replaces the file with the same bytes.
    Raises OSError naming `path`.
    """
    number = tokens = 0
    with _renamed_into_place(path) as file, zipfile.ZipFile(file, "w") as archive:
        for number, batch in enumerate(batches, 1):
            _save(archive, f"bounds_{number - 1:06d}.npy", batch.bounds)
            _save(archive, f"tokens_{number - 1:06d}.npy", batch.tokens)
            tokens += len(batch.tokens)
            failpoint("in_part", number)
        content = {"format": FORMAT} | asdict(record(number, tokens))
        archive.writestr(zipfile.ZipInfo(RECORD), json.dumps(content, indent=1))


def read_record(path: Path) -> PartRecord:
    """What a part says of itself. Raises InputError for a file that is no whole part."""
    with _damage_explained(path), zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read(RECORD))
        if content.pop("format") != FORMAT:
            raise InputError(f"{path}: made by another version: delete it and make it again")
        sources = [
            PartSource(source["name"], _file_contents(source["files"]))
            for source in content.pop("sources")
        ]
        record = PartRecord(**content, sources=sources)
        if path != part_path(path.parent, record.index, record.of):
            raise InputError(f"{path}: was renamed, it is part {record.index}/{record.of}")
        return record


def read_batches(path: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(bounds, tokens) of each batch. Raises InputError for bytes that are not those written."""
    with _damage_explained(path), zipfile.ZipFile(path) as archive:
        for number in range(count):
            bounds, tokens = (
                np.load(io.BytesIO(archive.read(f"{name}_{number:06d}.npy")))
                for name in ("bounds", "tokens")
            )
            yield bounds, tokens


def _save(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    # ZipInfo has a fixed time, so that the same text gives the same bytes.
    archive.writestr(zipfile.ZipInfo(name), buffer.getbuffer())


def _file_contents(files: list[list[Any]] | None) -> list[FileContent] | None:
    return None if files is None else [FileContent(*file) for file in files]


@contextmanager
def _renamed_into_place(path: Path) -> Iterator[io.BufferedRandom]:
    """A new file that becomes `path` at the end, unless there is an error."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    with errors_name(path):
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                failpoint("before_replace")
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        # From the system, only where a damaged number leads to no place in the file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{path}: not a part, or damaged ({first_line(error)}): delete it and make it again"
        ) from None
