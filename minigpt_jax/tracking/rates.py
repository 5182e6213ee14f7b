"""Compute how fast a run trains, from the moments at which its steps were ready.

Pure functions of time stamps. A device computes one step after the other while the host is a step
ahead, so only the moment at which a step's metrics are ready says how long the step took: the
moment at which the host reads them may be much later, after a save for example, and the next step
would then seem to take no time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minigpt_jax.tracking.records import Columns

# Fewest steps of a window in a report. Metrics that were read late move time between two
# neighbours: a sum over several steps keeps it.
REPORT_WINDOW = 10


class Pause(NamedTuple):
    """A time during which the host could not start a step."""

    # "data", "save" or "evaluation".
    kind: str
    began: float
    ended: float


class StepTime(NamedTuple):
    """The seconds between the end of the step before and the end of this step, by their use."""

    # All that is not named below: the step itself, and the host where the device waited for it.
    seconds: float
    # The device was idle because the host waited for data, saved or evaluated.
    data_seconds: float
    save_seconds: float
    evaluation_seconds: float
    # False for the first step, which is compiled, and where the end of the step before was seen too
    # late.
    measured: bool


def is_shown(done: int, every: int, horizon: int) -> bool:
    """Whether curves have a point after `done` updates of `horizon`: every `every`th, both ends."""
    return done % every == 0 or done in (1, horizon)


def step_time(
    previous_ready: float | None,
    dispatched: float,
    ready: float,
    pauses: Sequence[Pause],
    *,
    seen_waiting: bool = True,
) -> StepTime:
    """The time of a step that the host started at `dispatched` and whose metrics came at `ready`.

    `previous_ready`: the same for the step before, None for the first step. `pauses`: those of the
    host since it started the step before. `seen_waiting`: whether the step was seen unfinished
    after `previous_ready`.
    """
    # A pause counts only while the device has nothing to do.
    idle_from = -np.inf if previous_ready is None else previous_ready
    waits: dict[str, float] = dict.fromkeys(("data", "save", "evaluation"), 0.0)
    for pause in pauses:
        idle = min(pause.ended, dispatched) - max(pause.began, idle_from)
        waits[pause.kind] += max(idle, 0.0)
    if previous_ready is None:
        seconds = ready - dispatched
    else:
        seconds = ready - previous_ready - sum(waits.values())
    # A step that was already in flight and is ready as soon as the one before has ended before
    # `ready`, and so has the one before: what lies between the two is not known.
    in_flight = previous_ready is None or dispatched < previous_ready
    return StepTime(
        seconds=max(seconds, 0.0),
        data_seconds=waits["data"],
        save_seconds=waits["save"],
        evaluation_seconds=waits["evaluation"],
        measured=previous_ready is not None and (seen_waiting or not in_flight),
    )


class Window(NamedTuple):
    """The times of several steps in a row, added up."""

    # Of the steps that count for the rate.
    steps: int = 0
    seconds: float = 0.0
    # Of all steps.
    data_seconds: float = 0.0
    save_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def add(self, time: StepTime) -> "Window":
        """The window with one more step."""
        # A window must not begin with a step that is not measured. Within a window its time is part
        # of the sum.
        counts = time.measured or self.steps > 0
        return Window(
            self.steps + counts,
            self.seconds + counts * time.seconds,
            self.data_seconds + time.data_seconds,
            self.save_seconds + time.save_seconds,
            self.evaluation_seconds + time.evaluation_seconds,
        )

    @property
    def waits(self) -> float:
        """Seconds in which the device waited for data, saves and evaluations."""
        return self.data_seconds + self.save_seconds + self.evaluation_seconds


def data_share(seconds: float, data_seconds: float) -> float:
    """The share (0 to 1) of the time of steps with their waits for data that was spent in them."""
    return data_seconds / max(seconds + data_seconds, 1e-9)


def tokens_per_second(tokens: float, seconds: float, peak: float | None) -> float | None:
    """The rate; None where there is none, and where it is above `peak`, which no device reaches.

    `peak`: tokens/s at the peak FLOP/s of the devices, None where that is unknown.
    """
    if tokens <= 0 or seconds <= 0:
        return None
    rate = tokens / seconds
    return None if peak and rate > peak else rate


def seconds_left(steps: int, window: Window, whole: Window) -> float | None:
    """The time that `steps` more steps will take; None before the first rate.

    They take as long as those of the newest `window`, and wait as long as the average step of the
    `whole` process did.
    """
    if not window.steps or not whole.steps:
        return None
    return steps * (window.seconds / window.steps + whole.waits / whole.steps)


class WindowRates(NamedTuple):
    """The rates of a run, one of each window of at least REPORT_WINDOW steps."""

    # The last step of each window.
    step: np.ndarray
    tokens_per_s: np.ndarray
    # NaN where the peak of the devices is unknown.
    mfu: np.ndarray
    # Steps whose own record claims more than the peak.
    steps_above_peak: int
    # Windows that still do, and are left out.
    windows_above_peak: int


def window_rates(steps: Columns) -> WindowRates:
    """The rates of a run, from its records of any version.

    The records of version 0.1.0 have the times at which metrics were read. Such a time is at most
    one step late, so the sum over a window of n steps is right within a factor of n / (n - 1),
    whatever its single steps claim.
    """
    counts = np.isfinite(steps["tokens_per_s"]) & np.isfinite(steps["seconds"])
    # The first step is compiled.
    chosen = np.flatnonzero(counts)
    chosen = chosen[chosen > 0]
    windows = np.array_split(chosen, max(len(chosen) // REPORT_WINDOW, 1))
    # One step alone may have been read at any time.
    windows = [w for w in windows if len(w) > 1 and steps["seconds"][w].sum() > 0]
    seconds = np.array([steps["seconds"][w].sum() for w in windows])
    tokens = np.array([steps["tokens"][w].sum() for w in windows])
    # Seconds that the devices would need at their peak.
    at_peak = np.array([(steps["mfu"][w] * steps["seconds"][w]).sum() for w in windows])
    mfu = at_peak / seconds
    possible = ~(mfu > 1)
    return WindowRates(
        step=np.array([steps["step"][w[-1]] for w in windows])[possible],
        tokens_per_s=(tokens / seconds)[possible],
        mfu=mfu[possible],
        steps_above_peak=int((steps["mfu"] > 1).sum()),
        windows_above_peak=int((~possible).sum()),
    )
