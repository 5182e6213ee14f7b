"""What version 0.1.0 recorded as the identity of a source, so that its folders remain usable.

It held names and sizes only, and fewer kinds of files were read.
"""

import hashlib
import json
from pathlib import Path

_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")


def earlier_files(source: str) -> list[Path]:
    """The files of a local source that version 0.1.0 read."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in path.rglob("*")
        if file.name.endswith(_SUFFIXES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def earlier_identity(source: str) -> str:
    """The line that version 0.1.0 recorded for a local source."""
    root = Path(source)
    files = earlier_files(source)
    sizes = [path.stat().st_size for path in files]
    names = [path.relative_to(root).as_posix() for path in files]
    digest = hashlib.sha256(json.dumps([names, sizes]).encode()).hexdigest()
    return f"{root.resolve().name} ({len(files)} files, {sum(sizes)} bytes, {digest[:12]})"
