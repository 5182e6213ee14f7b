"""Show the progress of a tool: a bar on a terminal, otherwise a line every few seconds."""

import io
import sys
import time

from tqdm import tqdm

# Least time between two lines where stderr is not a terminal.
LINE_SECONDS = 10
LINE_WIDTH = 80


class ProgressBar:
    """A tqdm bar on stderr; where that is not a terminal, at most one line every LINE_SECONDS.

    `unit` names what is counted, `total` is the expected count if it is known, and `initial` is the
    count that an earlier process reached.
    """

    def __init__(self, unit: str, *, total: int | None = None, initial: int = 0):
        self._is_tty = sys.stderr.isatty()
        self._last_printed = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            unit_scale=True,
            # tqdm moves the cursor, which needs a terminal. Without one its output is thrown away,
            # and `advance` prints the lines.
            file=sys.stderr if self._is_tty else io.StringIO(),
            ncols=None if self._is_tty else LINE_WIDTH,
            mininterval=0.1 if self._is_tty else LINE_SECONDS,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` to the number done; `note` is shown after the bar."""
        # The update draws the bar if it is due.
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if not self._is_tty and time.monotonic() - self._last_printed > LINE_SECONDS:
            self._last_printed = time.monotonic()
            # As a string, a tqdm bar is its current line.
            print(self._bar, file=sys.stderr, flush=True)
