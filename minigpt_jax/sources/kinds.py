"""Which kinds of files are read, told by the ends of their names, and how their bytes are opened.

A name may end in capitals, and after its kind in the name of a compression: `part.JSONL.zst`.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from minigpt_jax.errors import first_line

TEXTS = (".txt", ".text", ".md")
TABLES = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
COLUMNAR = (".parquet", ".arrow", ".feather")
# Kinds whose files hold rows.
ROWS = (".parquet", *JSON_LINES, ".json", *TABLES, ".arrow", ".feather")
KINDS = (*ROWS, *TEXTS)
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

# What the readers raise for bytes that are not what the name says. An OSError with an error number
# is a fault of the machine instead.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
)


def kind_of(name: str) -> str | None:
    """The end of a name that tells its kind, without the compression; None for other files."""
    suffixes = Path(name.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def is_compressed(path: Path) -> bool:
    """Whether the name ends in that of a compression."""
    return path.suffix.lower() in COMPRESSIONS


def endings(kinds: tuple[str, ...] = KINDS) -> str:
    """The ends of names, for messages."""
    return f"{', '.join(kinds)} (also with {', '.join(COMPRESSIONS)})"


def cause_of(error: Exception) -> str:
    """Why a file cannot be read, from one of the errors in DAMAGE."""
    # Files made with `zstd --long` are whole, but need gigabytes of memory, which Arrow refuses.
    if "Frame requires too much memory" in str(error):
        return "its zstd window is above 128 MB, unpack it with zstd -d --long=31"
    return first_line(error)


def open_file(path: Path) -> IO[bytes]:
    """The file's bytes, without the compression. Raises OSError."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow

            stream: Any = pyarrow.input_stream(str(path), compression="zstd")
            return io.BufferedReader(stream)
    return path.open("rb")


def open_seekable(path: Path) -> Any:
    """As `open_file`, for formats that are read from their end. Raises OSError."""
    if not is_compressed(path):
        import pyarrow

        return pyarrow.OSFile(str(path))
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with open_file(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return unpacked
