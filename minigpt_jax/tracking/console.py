"""Print the progress of a run: one line that is rewritten on a terminal, plain lines elsewhere."""

import sys
import time

from minigpt_jax.tracking.durations import format_duration

# Seconds between two updates of the line on a terminal.
UPDATE_INTERVAL = 0.2
# Shorter waits for saves and evaluations have no column of their own.
SHOWN_WAIT = 0.05


class Console:
    """Lines on stdout, and the line of the newest step."""

    def __init__(self):
        self._is_tty = sys.stdout.isatty()
        # Whether the cursor is at the end of a line that may be rewritten.
        self._line_open = False
        self._last_update = 0.0

    def message(self, text: str) -> None:
        """Print a line that stays."""
        if self._line_open:
            print()
        print(text, flush=True)
        self._line_open = False

    def progress(self, record: dict, horizon: int, remaining: float | None, *, due: bool) -> None:
        """Print the line of a step if it is `due`; on a terminal, also after UPDATE_INTERVAL.

        `remaining`: seconds to the end of the run, None where they are not known.
        """
        outdated = time.monotonic() - self._last_update > UPDATE_INTERVAL
        if not (due or (self._is_tty and outdated)):
            return
        line = progress_line(record, horizon, remaining)
        if self._is_tty:
            # Return to the start of the line and erase it.
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)
        self._last_update = time.monotonic()
        self._line_open = self._is_tty


def progress_line(record: dict, horizon: int, remaining: float | None) -> str:
    """What people read of a step."""
    rate = "n/a" if record["tokens_per_s"] is None else f"{record['tokens_per_s']:,.0f}"
    mfu = "n/a" if record["mfu"] is None else f"{record['mfu']:.1%}"
    columns = [
        f"step {record['step']:>{len(str(horizon))}}/{horizon}",
        f"loss {record['loss']:.4f}",
        f"lr {record['learning_rate']:.2e}",
        f"grad {record['grad_norm']:.2f}",
        f"{rate} tokens/s",
        f"MFU {mfu}",
        f"data wait {record['data_wait']:.1%}",
    ]
    for wait in ("save", "evaluation"):
        seconds = record[f"{wait}_seconds"]
        if seconds >= SHOWN_WAIT:
            columns.append(f"{wait} {seconds:.1f}s")
    columns.append(f"ETA {'n/a' if remaining is None else format_duration(remaining)}")
    if record["skipped"]:
        columns.append("skipped: not finite")
    return "  ".join(columns)
