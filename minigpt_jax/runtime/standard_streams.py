"""Let no command fail because of its console: closed, gone, full, or in another encoding.

What a command prints of its progress is worth less than its work. Where the output is the work, as
for `minigpt sample`, an error is raised, once.
"""

import io
import os
import select
import sys
from typing import Any

STANDARD_OUTPUT = "standard output"


class OutputDescriptor(io.RawIOBase):
    """Descriptor 1 or 2 as a stream that drops what cannot be written.

    If the output is `needed`, the first failure raises OSError whose file name is STANDARD_OUTPUT.
    """

    def __init__(self, descriptor: int, name: str, *, needed: bool):
        self.name = name
        self._descriptor = descriptor
        self._needed = needed

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another program that shares the terminal has switched it to non-blocking.
                select.select([], [self._descriptor], [])
            except OSError as error:
                if self._needed:
                    self._needed = False
                    raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from None
                break
        return size


def prepare_streams(*, output_needed: bool = False) -> None:
    """Make stdin, stdout and stderr usable, whatever the program was started with.

    Must precede any other file: one that is opened while descriptor 1 or 2 is closed would get that
    number, and what is printed would be written into it. Characters that the encoding lacks are
    written as escapes.
    """
    _open_missing_descriptors()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (stays open)
    sys.stdout = _output(1, "<stdout>", sys.stdout, needed=output_needed)
    sys.stderr = _output(2, "<stderr>", sys.stderr, needed=False)


def _open_missing_descriptors() -> None:
    """Open the null device on those of the descriptors 0, 1 and 2 that are closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Each time the lowest number that is free, so this one. Programs that are started from
            # here need it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _output(descriptor: int, name: str, before: Any, *, needed: bool) -> io.TextIOWrapper:
    """A text stream for the descriptor that buffers and encodes as the one `before` does."""
    raw: Any = OutputDescriptor(descriptor, name, needed=needed)
    if before is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    return io.TextIOWrapper(
        # With python -u, Python's own stream has no buffer either.
        raw if before.write_through else io.BufferedWriter(raw),
        before.encoding,
        "backslashreplace",
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
