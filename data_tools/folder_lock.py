"""The lock that allows one data tool at a time to write to a folder.

The folder itself is locked, so no file is left behind. The operating system releases the lock when
the process ends, however it ends; worker processes do not inherit it.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minigpt_jax.errors import InputError

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it for this process; a folder that stays empty is removed.

    Raises InputError where another process has the lock. On a file system without locks, it warns
    and goes on.
    """
    is_new = not folder.exists()
    descriptor = _open_locked(folder)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` where it is not there. Raises InputError where a file is in its way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename}: a file, expected a folder to write to") from None


def _open_locked(folder: Path) -> int:
    """A descriptor of the folder that holds the lock."""
    while True:
        make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        _lock(descriptor, folder)
        # Another process may have removed its empty folder before this one had the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(descriptor)
            raise InputError(
                f"{folder}: another data tool is writing to this folder: "
                "wait for it, or choose another folder"
            ) from None
        print(
            f"warning: {folder}: its file system has no locks ({error.strerror}): "
            "start no second tool on it",
            file=sys.stderr,
        )
