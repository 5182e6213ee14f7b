"""Write files that are complete or absent, and read them back."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO

from minigpt_jax.errors import DamageError
from minigpt_jax.runtime.failpoint import failpoint


def expand_home(text: str) -> str:
    """`text` with "~" or "~user" at its start replaced by the home folder.

    A shell does that, but not in --option=~/folder.
    """
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # no such user
        return text


def user_name(text: str) -> str:
    """`expand_home` of an option that is not empty, as "$OUT" is where OUT is not set."""
    if not text:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError("the name is empty")
    return expand_home(text)


def user_path(text: str) -> Path:
    """`user_name` as a path."""
    return Path(user_name(text))


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Errors of the operating system name `path`. Python does that when a file is opened only."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises OSError naming `path`."""
    with errors_name(path):
        return path.read_bytes()


def read_written(path: Path) -> bytes:
    """The content of a file that was written whole.

    Raises DamageError if it is lost, OSError naming `path` for whatever else prevents reading.
    """
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamageError(f"{path}: {error.strerror}") from None


def shell_word(path: Path | str) -> str:
    """`path` as one argument of a command that is printed for copying into a shell."""
    text = str(path)
    # Otherwise a program would take a dash for an option, and `expand_home` a tilde for the home.
    return quote(f"./{text}" if text.startswith(("-", "~")) else text)


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace `path` with what `write` writes to a binary file.

    A reader finds the old file or the new one, also after a crash. Raises OSError naming `path`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with errors_name(path):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            failpoint("before_replace")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, atomically. Raises OSError naming `path`."""
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_jsonl(path: Path) -> list[dict]:
    """All records of a `.jsonl` file whose records have a "step"; [] if there is no file.

    A line without its end is ignored: its writer was killed. Other damaged lines are named on
    stderr and ignored. Raises OSError naming `path` if it cannot be read.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            record = json.loads(line)
            records.append(record | {"step": int(record["step"])})
        except (ValueError, KeyError, TypeError):
            print(f"warning: {path}: line {number} is damaged and was ignored", file=sys.stderr)
    return records


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises OSError naming `path`."""
    with errors_name(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
