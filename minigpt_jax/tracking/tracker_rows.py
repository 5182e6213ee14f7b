"""What a tracker shows of a run: one row of numbers for a step, made from the run's own records.

A tracker's step is the number of updates done, so the metrics of an update and the evaluation after
it are one row. Trackers take rows in the order of their steps, each once: a row is given out when
nothing can be added to it any more.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from minigpt_jax.tracking.rates import StepTime, Window, data_share, is_shown, tokens_per_second

Row = tuple[int, dict[str, float]]


class GrowingFile:
    """The records of a `.jsonl` file that is still written. It stays the file that it was."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> list[dict]:
        """The records since the last call; the line that is being written belongs to the next."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        records = []
        for line in lines:
            try:
                record = json.loads(line)
                records.append(record | {"step": int(record["step"])})
            except (ValueError, KeyError, TypeError):
                # A damaged line, of which the trainer has warned.
                continue
        return records


class Rows:
    """The rows of a run: of every `every`-th update, the first and the last, and the evaluations.

    `horizon`: updates of the whole run.
    """

    def __init__(self, *, every: int, horizon: int):
        self._every = every
        self._horizon = horizon
        self._rows: dict[int, dict[str, float]] = {}
        self._done = 0
        self._evaluated = -1
        self._window = Window()

    def add(self, steps: Iterable[dict], evaluations: Iterable[dict]) -> list[Row]:
        """The rows that are complete with these records, in order.

        `steps` and `evaluations` continue those of the call before. They must have been read in
        this order, so that the evaluation that precedes a step is there if the step is. The newest
        row waits for its evaluation or the next step, if necessary until the run is resumed.
        """
        for record in steps:
            self._done = record["step"] + 1
            self._window = self._window.add(_step_time(record))
            if is_shown(self._done, self._every, self._horizon):
                self._put(self._done, "training", record | _of_window(record, self._window))
                self._window = Window()
        for record in evaluations:
            self._evaluated = record["step"]
            self._put(self._evaluated, "evaluation", record)
        # An evaluation may be read before the step that precedes it.
        end = self._done + (self._evaluated >= self._done)
        complete = [x for x in sorted(self._rows) if x < end]
        return [(x, self._rows.pop(x)) for x in complete]

    def _put(self, x: int, group: str, record: dict) -> None:
        """Add the numbers of a record. Trackers cannot draw those that are not finite."""
        values = {f"{group}/{k}": v for k, v in record.items() if isinstance(v, float)}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._rows.setdefault(x, {}).update(finite)


def _step_time(record: dict) -> StepTime:
    # The records of version 0.1.0 have no waits.
    waits = [record.get(f"{kind}_seconds") or 0.0 for kind in ("data", "save", "evaluation")]
    return StepTime(record["seconds"], *waits, measured=record["tokens_per_s"] is not None)


def _of_window(record: dict, window: Window) -> dict:
    """Rates and waits of the steps since the row before, which the step of `record` ends."""
    shown: dict = {
        "save_seconds": window.save_seconds,
        "evaluation_seconds": window.evaluation_seconds,
    }
    rate = tokens_per_second(window.steps * record.get("tokens", 0), window.seconds, None)
    if rate:
        shown["data_wait"] = data_share(window.seconds, window.data_seconds)
        shown["tokens_per_s"] = rate
        if record["mfu"] and record["tokens_per_s"]:
            shown["mfu"] = record["mfu"] * rate / record["tokens_per_s"]
    return shown
