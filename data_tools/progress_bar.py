"""Show how far a tool has come: a bar on a terminal, a line now and then elsewhere."""

import io
import sys
import time

from tqdm import tqdm

# Between two lines where there is no terminal.
LINE_SECONDS = 10
LINE_WIDTH = 80


class ProgressBar:
    """A tqdm bar on stderr, or one line every LINE_SECONDS where stderr is no terminal.

    `unit` is what is counted, `total` the expected number if it is known, `initial` the number that
    an earlier process did.
    """

    def __init__(self, unit: str, *, total: int | None = None, initial: int = 0):
        self._is_tty = sys.stderr.isatty()
        self._printed = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            unit_scale=True,
            file=sys.stderr if self._is_tty else io.StringIO(),
            ncols=None if self._is_tty else LINE_WIDTH,
            mininterval=0.1 if self._is_tty else LINE_SECONDS,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` to what is done; `note` is shown behind the bar."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        if not self._is_tty and time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            print(self._bar, file=sys.stderr, flush=True)
