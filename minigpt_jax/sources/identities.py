"""What tells one text from another: one line that changes with the rows of a source.

The line of a local source is made of its files' names, sizes and contents. Several processes can
each read some of the files, and `identity_of` makes the same line of what they found.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from minigpt_jax.runtime.files import sha256
from minigpt_jax.sources import hub
from minigpt_jax.sources.found import Found, find


class FileContent(NamedTuple):
    """A file of a source: its name there, its bytes, and their SHA-256 (hex)."""

    name: str
    size: int
    sha256: str


def identity(source: str, *, name: str | None = None) -> str:
    """One line that changes with the rows of `source`.

    It holds names, sizes and a hash of the content of local files, or the commit of a Hub data set.
    """
    found = find(source)
    if found is None:
        return hub_identity(source, name)
    return identity_of(folder_name(source), file_contents(source, found.files))


def hub_identity(source: str, name: str | None) -> str:
    """The identity of a Hub data set, with the configuration `name`."""
    configuration = f" {name}" if name else ""
    return f"{source.partition('@')[0]}@{hub.content_hash(source, name)}{configuration}"


def identity_of(folder: str, files: Sequence[FileContent]) -> str:
    """The identity of a local source called `folder` that has these files, in this order."""
    digest = _digest([[file.name for file in files], [file.sha256 for file in files]])
    size = sum(file.size for file in files)
    return f"{folder} ({len(files)} files, {size} bytes, content {digest})"


def file_contents(source: str, files: Sequence[Path]) -> list[FileContent]:
    """Name, size and hash of some files of a local source. Reads all of their bytes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # hashlib lets other threads run.
        hashes = list(pool.map(sha256, files))
    return [
        FileContent(_name(path, source), path.stat().st_size, hash)
        for path, hash in zip(files, hashes, strict=True)
    ]


def names_and_sizes(source: str, found: Found) -> str:
    """One line that changes with the names and sizes of a local source's files, read from none."""
    sizes = [path.stat().st_size for path in found.files]
    digest = _digest([[_name(path, source) for path in found.files], sizes])
    return f"{folder_name(source)} ({len(sizes)} files, {sum(sizes)} bytes, names {digest})"


def folder_name(source: str) -> str:
    """The name of a local source, whichever path leads to it."""
    return Path(source).resolve().name


def _name(path: Path, source: str) -> str:
    return path.relative_to(source).as_posix()


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
